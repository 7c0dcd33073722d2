"""The audit as Markdown."""

import math
from collections.abc import Iterator

from jaxlora.audit.contamination import LIMIT
from jaxlora.audit.grams import LENGTH
from jaxlora.audit.leakage import TOP

_TOLD_LABELS = 10  # of a dataset with many labels, the most frequent ones


def report(found: dict) -> str:
    """Returns the text of audit.md from the contents of audit.json."""
    parts = (_leakage(found["leakage"], found["smallest"]), _contamination(found["contamination"]))
    lines = [line for part in parts for line in (*part, "")]
    return "\n".join(["# Audit", "", *lines, *_patients(found["patients_in_two_splits"])])


def _leakage(leakage: dict[str, dict], smallest: int) -> Iterator[str]:
    yield from ("## Does the wording give the outcome away?", "")
    if not leakage:
        yield "No dataset here has classes to tell, in a train and a test split."
        return
    yield "AUROC (average precision) on the test notes, the mean over the labels, each against the rest:"
    yield from ("", "| dataset | train notes | test notes | labels | bag of words | length alone | prevalence | |")
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for name, one in leakage.items():
        labels = f"{len(one['labels'])} of {one['of_labels']:,}" if len(one["labels"]) < one["of_labels"] else ""
        cells = [name, f"{one['train']:,}", f"{one['test']:,}", labels or f"{one['of_labels']}"]
        cells += [_score(one["scores"][model]) for model in ("words", "length", "prevalence")]
        without = "one class only" if one["one_class"] else "no leak found"
        yield f"| {' | '.join(cells)} | {'**LEAK?**' if one['reasons'] else without} |"
    yield from (
        "",
        f"A word is told when the notes of at least {smallest} train patients have it; an outcome word always is.",
    )
    yield f"A count of notes of fewer than {smallest} test patients is <{smallest}; what would tell it is left out (–)."
    yield f"Of many labels the most frequent are looked at, and {_TOLD_LABELS} are told."
    for name, one in leakage.items():
        yield from ("", f"### {name}", "")
        yield from (f"* **LEAK?** {reason}" for reason in one["reasons"])
        if one["naming"]:
            yield "Words that name a label, as a history may: " + "; ".join(one["naming"]) + "."
        if one["reasons"] or one["naming"]:
            yield ""
        if one["one_class"]:
            yield from ("One class only: the train or the test notes are all labelled alike, so no word tells.", "")
        if any(one["top"].values()):
            yield from ("| label | heaviest words |", "|---|---|")
            for label in one["labels"][:_TOLD_LABELS]:
                yield f"| {label} | {', '.join(word for word, _ in one['top'][label][:TOP])} |"
            yield ""
        if one["outcome"]:
            yield "| outcome word | speaks for | of its test notes | of the others | AUROC | odds ratio |"
            yield "|---|---|---:|---:|---:|---:|"
            for row in one["outcome"]:
                here, of, there, others = (
                    _count(row[name]) for name in ("with_label", "of_label", "without_label", "of_others")
                )
                figures = "– | –" if row["auroc"] is None else f"{row['auroc']:.3f} | {row['odds_ratio']:.1f}"
                yield f"| {row['word']} | {row['label']} | {here} / {of} | {there} / {others} | {figures} |"
        elif one["kind"] != "multilabel" and not one["one_class"]:
            yield "No outcome word is in the test notes."


def _count(count: int | str | None) -> str:
    return f"{count:,}" if isinstance(count, int) else count or "–"


def _score(score: dict[str, float]) -> str:
    if math.isnan(score["auroc"]):  # of no label do the test notes have some with it and some without
        return "–"
    return f"{score['auroc']:.3f} ({score['auprc']:.3f})"


def _contamination(found: dict) -> Iterator[str]:
    yield from ("## Does a corpus hold the test notes?", "")
    if found["skipped"]:
        yield f"Skipped: {found['skipped']}."
        return
    yield f"The share of a test note's distinct {LENGTH}-word sequences that some train note of the corpus has; letters"
    yield "only, and not across de-identification marks and blank lines:"
    yield from (
        "",
        f"| corpus | dataset | patients | test notes | median | 90 % | 99 % | above {LIMIT:.0%} | in one note |",
    )
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    for row in found["rows"]:
        cells = [row["corpus"], row["dataset"], row["stratum"], f"{row['notes'] - row['too_short']:,}"]
        if row["quantiles"] is None:
            cells += ["–"] * 5
        else:
            cells += [f"{row['quantiles'][q]:.1%}" for q in ("0.5", "0.9", "0.99")]
            cells += [f"{row['contaminated']:.1%}", f"{row['held_by_one']:.1%}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    if found["carevue"]:
        yield f"The patients that CareVue alone knows are not told apart: {found['carevue']}."
    short = max(row["too_short"] for row in found["rows"])
    if short:
        yield f"Notes without such a sequence are left out, {short:,} at most of a dataset."
    yield f"{found['excluded']:,} notes of the corpora have more than half of a test note each; their hashes are in"
    yield "exclude.txt, which `corpus.exclude` takes."


def _patients(shared: list[dict]) -> Iterator[str]:
    yield from ("## Patients in more than one split", "")
    if not shared:
        yield "None, in any dataset or across datasets."
        return
    yield from ("| dataset | split | dataset | split | patients in both |", "|---|---|---|---|---:|")
    for pair in shared:
        cells = [pair["first"], pair["first_split"], pair["second"], pair["second_split"], f"{pair['patients']:,}"]
        yield f"| {' | '.join(cells)} |"
