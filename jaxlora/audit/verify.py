"""`jaxlora verify-data`: tables, cohort, datasets and splits against the published counts, or an answer key."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxlora import files
from jaxlora.audit import answers as answer_key
from jaxlora.audit import patients, published, tables
from jaxlora.audit.answers import Answers
from jaxlora.audit.contents import Part, survey
from jaxlora.audit.ledger import Ledger
from jaxlora.audit.outcomes import CORRECT, Outcomes
from jaxlora.data import datasets, flow
from jaxlora.data.examples import named
from jaxlora.errors import UserError


@files.private()
def verify_data(config, workdir: str | Path, full: bool = False) -> bool:
    """Prints one line a check, PASS, FAIL or INFO, in the order of the pipeline, and the first difference at the end.

    A folder of tables with an `answers.json`, as generated ones have, is checked against that, and the full release
    against the published figures; those that only hold in paper mode are for information in correct mode. Writes
    `verify.json` and `verify.md` into the workdir.

    Args:
      config: what the datasets were prepared with.
      workdir: the folder that `prepare` wrote.
      full: whether the tables of hundreds of millions of rows are counted too.

    Returns:
      Whether nothing failed.

    Raises:
      UserError: an answer key is malformed, a prepared dataset is damaged, or a folder is not there.
    """
    folder, ledger = Path(workdir), Ledger()
    if not folder.is_dir():
        raise UserError(f"--workdir: {folder} is no folder; give the one that `jaxlora prepare` wrote")
    releases = {made.release.name: made.release for made in datasets.recipes(config, key=b"", workers=1)}
    keys = {name: answer_key.read(config[name], name) for name in releases}
    for name in releases:
        tables.check(ledger, config, name, keys[name], full)
    told = flow.read(folder)
    for name in releases:
        _cohort(ledger, config, name, keys[name], told)
    parts = survey(folder, config.mode)
    for name, release in releases.items():
        Outcomes(ledger, config, release, keys[name], folder, parts).check()
        _corpus(ledger, config, name, keys[name], told, parts)
    _disjoint(ledger, config, parts)
    return ledger.close(folder)


def _cohort(ledger: Ledger, config, release: str, answers: Answers | None, told: dict[str, dict[str, int]]) -> None:
    """Compares what `prepare` counted while it made the admission notes, and what each task then left out."""
    paper = config.mode == "paper"
    shared = named(f"{release}_admission", config.mode)
    counted = told.get(shared)
    if counted is None:
        ledger.fail("cohort", shared, "flow.json does not have it; run `jaxlora prepare` with this config")
        return
    if answers:
        for what, expected in flow.ordered(answers.notes[config.mode]):
            ledger.compare("cohort", f"{shared}: {what}", counted.get(what, 0), expected)
        return
    for what, count in flow.ordered(counted):
        expected = published.FLOW[""].get(what) if release == "mimic3" else None
        ledger.published("cohort", f"{shared}: {what}", count, expected, "" if paper else CORRECT)
    for name, figures in published.FLOW.items() if release == "mimic3" else ():
        dataset = f"{release}_admission/{named(name, config.mode)}"
        for what, expected in figures.items() if dataset in told else ():
            found = told[dataset].get(what, 0)
            ledger.published("cohort", f"{dataset}: {what}", found, expected, "" if paper else CORRECT)


def _corpus(
    ledger: Ledger,
    config,
    release: str,
    answers: Answers | None,
    told: dict[str, dict[str, int]],
    parts: Sequence[Part],
) -> None:
    """Compares the notes of a corpus with the answer key, or with what `prepare` counted on the way."""
    name = f"clinical_corpus/{named(release, config.mode)}"
    size = sum(len(part.ids) for part in parts if part.dataset == name)
    if not size or name not in told:
        ledger.fail("corpus", name, "not prepared; run `jaxlora prepare` with this config")
        return
    counted = told[name]
    expected = dict(answers.corpus) if answers else {}
    if config.mode == "paper":  # every note is kept, whatever is the matter with it
        expected = {what: count for what, count in expected.items() if what == "notes: read"}
    elif not config.corpus.dedupe:
        expected.pop("notes: the same text again", None)
    for what, count in flow.ordered(expected):
        ledger.compare("corpus", f"{name}: {what}", counted.get(what, 0), count)
    left_out = sum(count for what, count in counted.items() if what.startswith("notes: ") and what != "notes: read")
    ledger.compare("corpus", f"{name}: notes read less those left out", size, counted["notes: read"] - left_out)


def _disjoint(ledger: Ledger, config, parts: Sequence[Part]) -> None:
    """Checks that no patient is in two splits, of one dataset or of two, and that no identifier comes twice."""
    step = "splits"
    if not parts:
        ledger.fail(step, "prepared datasets", "there are none; run `jaxlora prepare`")
        return
    found: Counter[tuple[str, str]] = Counter()
    for shared in patients.in_two_splits(parts):
        names = sorted({shared.first, shared.second})
        found[" and ".join(names), _allowed(config, names)] += shared.patients
    for (name, why), count in found.items():
        if why:
            ledger.info(step, f"patients in two splits: {name}", why, count)
        else:
            ledger.compare(step, f"patients in two splits: {name}", count, 0)
    if all(why for _, why in found):
        ledger.compare(step, f"patients in two splits{' of other datasets' if found else ''}", 0, 0)
    repeated = {name: count for name, count in patients.repeated_ids(parts).items() if count}
    for name, count in repeated.items():
        ledger.compare(step, f"identifiers that come twice: {name}", count, 0)
    if not repeated:
        ledger.compare(step, "identifiers that come twice, in a dataset", 0, 0)


def _allowed(config, names: Sequence[str]) -> str:
    """Returns why patients may be in two splits of these datasets, or "" if they may not."""
    by_note = config.mode == "paper" or config.corpus.split == "note"
    if by_note and any(name.startswith("clinical_corpus/") for name in names):
        return "the corpus is split by note, as in the paper"
    if any(name == "mimic3_admission/pmv_paper" for name in names):
        return "BEEP splits by admission"
    return ""
