"""The model card of a run, in the sections of Mitchell et al. 2019, as Markdown."""

from collections.abc import Iterator

from jaxlora.documents.facts import FIGURES, Evaluated, Facts
from jaxlora.eval.subgroups import LEAST

_KINDS = {
    "lm": "next token of a clinical note",
    "binary": "one of two outcomes of a note",
    "multiclass": "one of several classes of a note",
    "multilabel": "several labels of a note",
    "tokens": "entities in a note",
    "span": "the answer to a question in a note",
}


def model_card(facts: Facts) -> str:
    """Returns the text of model-card.md."""
    parts = (_model, _use, _data, _training, _performance, _calibration, _subgroups, _leakage, _privacy)
    return "\n".join(line for part in parts for line in (*part(facts), ""))


def _model(facts: Facts) -> Iterator[str]:
    yield from (f"# Model card: {facts.row}, {facts.dataset}", "", "## Model", "")
    size = f", {facts.base_parameters:,} parameters" if facts.base_parameters else ""
    yield f"* Base: {facts.base}{size}, frozen unless the table says otherwise; fingerprint `{facts.base_fingerprint}`"
    for name, described in facts.adapters.items():
        earlier = f", first trained on {facts.earlier[name]}" if name in facts.earlier else ""
        active = "active" if name in facts.config.active else "not in the forward pass"
        yield f"* Adapter {name}: `{described}`, {active}{earlier}"
    yield f"* Predicts: {_KINDS[facts.kind]}" + (f" ({len(facts.labels):,} labels)" if facts.labels else "")
    yield from ("", "| partition | parameters | trained in this run |", "|---|---:|---|")
    if "base" not in facts.partitions:
        yield f"| base | {_count(facts.base_parameters)} | no |"
    for name, count in facts.partitions.items():
        yield f"| {name} | {count:,} | {'yes' if name in facts.trained else 'no'} |"


def _use(facts: Facts) -> Iterator[str]:
    yield from ("## Intended use", "")
    yield "Research on the adaptation of language models to clinical notes: comparison of methods, on the data below."
    yield ""
    yield "**This is not a medical device.** It was not validated prospectively, nor at another site, and no decision"
    yield "about a patient may rest on it. Its scores are no probabilities unless they were recalibrated where they are"
    yield "used."


def _data(facts: Facts) -> Iterator[str]:
    yield from ("## Data", "", f"* Dataset: {facts.dataset}, split by patient unless its recipe says otherwise")
    for split, count in facts.splits.items():
        yield f"* {split}: {count:,} notes"
    for split, found in facts.evaluated.items():
        positives = f", {found.positives:,} of them with the second class" if found.positives is not None else ""
        yield f"* Evaluated on {split}: {found.notes:,} notes of {found.patients:,} patients{positives}"
    length, long = facts.config.data.length, facts.config.data.long_notes
    cut = "longer ones are cut to it" if long == "truncate" else "longer ones are cut into pieces"
    yield f"* A note is read up to {length:,} tokens; {cut}"


def _training(facts: Facts) -> Iterator[str]:
    c = facts.config
    yield from ("## Training", "")
    published, usual = "the published schedule", f"{c.decay} decay, warm-up of {c.warmup:.0%} of the updates"
    rate = published if c.decay == "paper" else usual
    yield f"* AdamW, peak learning rate {c.learning_rate:g}, {rate}"
    yield f"* {c.epochs} epochs of {c.batch_size} packed rows of {c.data.length:,} tokens an update, seed {c.seed}"
    yield f"* Computed in {c.dtype}"
    if c.quantize:
        yield f"* The base's kernels in {c.quantize}"
    if c.class_weights and facts.kind in ("binary", "multiclass"):
        yield "* Classes weighted by the inverse of their frequency, so that scores overstate the rare ones"
    chosen = "the best on validation" if c.select == "best" and facts.score is not None else "the last"
    yield f"* Checkpoint: {chosen}, update {facts.update:,}"


def _performance(facts: Facts) -> Iterator[str]:
    yield from ("## Performance", "", "In brackets the 95 % bootstrap interval over patients.", "")
    figures = FIGURES[facts.kind]
    yield f"| split | {' | '.join(figures.values())} |"
    yield "|---|" + "---:|" * len(figures)
    for split, found in facts.evaluated.items():
        yield f"| {split} | {' | '.join(_with_interval(found, name) for name in figures)} |"
    for split, found in facts.evaluated.items():
        if found.values.get("labels_skipped"):
            yield ""
            yield f"{found.values['labels_skipped']:,} labels of {split} have one class only and are in no mean."


def _calibration(facts: Facts) -> Iterator[str]:
    found = {split: of.calibration for split, of in facts.evaluated.items() if of.calibration}
    if not found:
        return
    yield from (
        "## Calibration",
        "",
        "0 is the perfect intercept, 1 the perfect slope; a slope below 1 is overconfident.",
        "",
    )
    columns = {
        "brier": "Brier",
        "log_loss": "log loss",
        "calibration_intercept": "intercept",
        "calibration_slope": "slope",
        "ece": "ECE",
    }
    yield f"| split | {' | '.join(columns.values())} |"
    yield "|---|" + "---:|" * len(columns)
    for split, of in found.items():
        yield f"| {split} | {' | '.join(_number(of[name]) for name in columns)} |"


def _subgroups(facts: Facts) -> Iterator[str]:
    yield from ("## Subgroups", "")
    if not any(found.groups for found in facts.evaluated.values()):
        yield "The predictions have no groups of patients: nothing is known of how well the model does for each."
        return
    yield f"Groups of fewer than {LEAST} patients, and those from which one could be reckoned, are not shown."
    for split, found in facts.evaluated.items():
        yield from (
            "",
            f"| {split} | group | patients | notes | AUROC | calibration slope |",
            "|---|---|---:|---:|---:|---:|",
        )
        for group in found.groups:
            if group.shown:
                area = f"{_number(group.auroc)} [{_number(group.low)}, {_number(group.high)}]"
                told = f"{group.patients:,} | {group.notes:,} | {area} | {_number(group.slope)}"
            else:
                told = "not shown | not shown | not shown | not shown"
            yield f"| {group.attribute} | {group.name} | {told} |"
        if found.gaps:
            yield ""
            gaps = "; ".join(f"{attribute} {gap:.3f}" for attribute, gap in found.gaps.items())
            yield f"How far the worst group lies below all notes: {gaps}."


def _leakage(facts: Facts) -> Iterator[str]:
    yield from ("## What may flatter it", "")
    if "admission" in facts.dataset:
        yield "* Admission notes are cut from discharge summaries, which are written after the stay: a physical exam"
        yield "  may be the one at discharge, and a history may tell the course. `jaxlora audit` looks for such words."
    yield "* MIMIC-IV (2008 to 2019) and MIMIC-III (2001 to 2012) share patients under different ids: an adapter of one"
    yield "  release may have read the test notes of the other. `jaxlora audit` counts the overlap."
    yield "* The base, or an encoder that it is compared with, may have read notes of MIMIC before."


def _privacy(facts: Facts) -> Iterator[str]:
    yield from ("## Privacy and agreements", "")
    yield "* A model that was trained on notes can repeat them. An adapter trained on MIMIC is credentialed material,"
    yield "  like the notes: it is shared on PhysioNet under the agreement of its source, and on no public hub."
    yield "* The same holds for checkpoints and saved predictions. This card has counts and metrics only."


def _with_interval(found: Evaluated, name: str) -> str:
    low, high = found.intervals[name]
    return f"{_number(found.values[name])} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"
