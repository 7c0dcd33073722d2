"""The model card of a run, in the sections of Mitchell et al. 2019, as Markdown."""

from collections.abc import Iterator

from jaxlora.data.examples import OUTCOMES
from jaxlora.documents.facts import FIGURES, Evaluated, Facts, Trained, Words
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
    texts = [list(part(facts)) for part in parts]
    return "\n".join(line for lines in texts if lines for line in (*lines, ""))


def _model(facts: Facts) -> Iterator[str]:
    yield from (f"# Model card: {facts.title}", "", "## Model", "")
    predicts = f"* Predicts: {_KINDS[facts.kind]}{_counted(facts)}"
    m = facts.model
    if isinstance(m, Words):
        each = ", one for each label" if facts.kind == "multilabel" else ""
        yield f"* No language model: at most {m.most:,} words and pairs of words, the most frequent, weighed by TF-IDF,"
        yield f"  and a logistic regression on them{each}"
        yield "* Neither its words nor their weights are kept, for they are of notes: it can be fitted again and its"
        yield "  saved predictions evaluated, but it scores no other notes"
        yield predicts
        return
    size = f", {m.base_parameters:,} parameters" if m.base_parameters else ""
    frozen = "trained in this run" if "base" in m.trained else "frozen"
    yield f"* Base: {m.base}{size}, {frozen}; its fingerprint{_before(m)} is `{m.base_fingerprint}`"
    for name, described in m.adapters.items():
        earlier = f", first trained on {m.earlier[name]}" if name in m.earlier else ""
        active = "active" if name in facts.config.active else "not in the forward pass"
        yield f"* Adapter {name}: `{described}`, {active}{earlier}"
    yield predicts
    yield from ("", "| partition | parameters | trained in this run |", "|---|---:|---|")
    if "base" not in m.partitions:
        yield f"| base | {_count(m.base_parameters)} | no |"
    for name, count in m.partitions.items():
        yield f"| {name} | {count:,} | {'yes' if name in m.trained else 'no'} |"


def _before(model: Trained) -> str:
    return " before training" if "base" in model.trained else ""


def _counted(facts: Facts) -> str:
    """Returns how many labels, classes or types of entities there are; the ends of an answer are no labels."""
    if facts.kind == "tokens":
        types = {label.partition("-")[2] for label in facts.labels if label != "O"}
        return f" ({len(types):,} types)"
    return f" ({len(facts.labels):,} labels)" if facts.kind in OUTCOMES else ""


def _use(facts: Facts) -> Iterator[str]:
    yield from ("## Intended use", "")
    yield "Research on the adaptation of language models to clinical notes: comparison of methods, on the data below."
    yield ""
    yield "**This is not a medical device.** It was not validated prospectively, nor at another site, and no decision"
    yield "about a patient may rest on it."
    if facts.kind in OUTCOMES:
        yield "Its scores are no probabilities unless they were recalibrated where they are used."


def _data(facts: Facts) -> Iterator[str]:
    yield from ("## Data", "", f"* Dataset: {facts.dataset}, split by patient unless its recipe says otherwise")
    for split, count in facts.splits.items():
        yield f"* {split}: {count:,} notes"
    for split, found in facts.evaluated.items():
        positives = f", {found.positives:,} of them with the second class" if found.positives is not None else ""
        yield f"* Evaluated on {split}: {found.notes:,} notes of {found.patients:,} patients{positives}"
    if isinstance(facts.model, Words):
        yield "* A note is read whole"
        return
    length, long = facts.config.data.length, facts.config.data.long_notes
    cut = "longer ones are cut to it" if long == "truncate" else "longer ones are cut into pieces"
    yield f"* A note is read up to {length:,} tokens; {cut}"


def _training(facts: Facts) -> Iterator[str]:
    c = facts.config
    yield from ("## Training", "")
    weighted = "* Classes weighted by the inverse of their frequency, so that scores overstate the rare ones"
    weighs = c.class_weights and facts.kind in ("binary", "multiclass")
    if isinstance(facts.model, Words):
        tried = ", ".join(f"{value:g}" for value in facts.model.tried)
        yield f"* C, the inverse of the regularisation, of {tried}: {facts.model.c:g}, whose AUROC on validation notes"
        yield f"  was the best, {facts.model.auroc:.3f}"
        yield from [weighted] if weighs else []
        return
    published, usual = "the published schedule", f"{c.decay} decay, warm-up of {c.warmup:.0%} of the updates"
    rate = published if c.decay == "paper" else usual
    yield f"* AdamW, peak learning rate {c.learning_rate:g}, {rate}"
    epochs = f"{c.epochs} epoch{'s' if c.epochs != 1 else ''}"
    yield f"* {epochs}, each update of {c.batch_size} packed rows of {c.data.length:,} tokens, seed {c.seed}"
    yield f"* Computed in {c.dtype}"
    if c.quantize:
        yield f"* The base's kernels in {c.quantize}"
    yield from [weighted] if weighs else []
    chosen = "the best on validation" if c.select == "best" and facts.model.score is not None else "the last"
    yield f"* Checkpoint: {chosen}, update {facts.model.update:,}"


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
        yield "There are no figures by group of patients: nothing is known of how well the model does for each."
        return
    yield (
        f"Groups of fewer than {LEAST} patients, or of one outcome alone, and those from which one could be reckoned, "
        "are not shown."
    )
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
    if isinstance(facts.model, Words):
        yield "* Words that only this site uses, such as the names of its wards."
        return
    if facts.model.earlier:
        yield "* MIMIC-IV (2008 to 2019) and MIMIC-III (2001 to 2012) share patients under different ids: an adapter of"
        yield "  one release may have read the test notes of the other. `jaxlora audit` counts the overlap."
    yield "* The base may have read these notes, or notes of the same patients, before: clinical encoders were trained"
    yield "  on MIMIC."


def _privacy(facts: Facts) -> Iterator[str]:
    yield from ("## Privacy and agreements", "")
    if isinstance(facts.model, Words):
        yield "* Predictions for notes of MIMIC are credentialed material, like the notes: they are shared on PhysioNet"
        yield "  under the agreement of their source, and on no public hub. This card has counts and metrics only."
        return
    what = "A model" if "base" in facts.model.trained else "An adapter"
    yield f"* A model that was trained on notes can repeat them. {what} trained on MIMIC is credentialed material,"
    yield "  like the notes: it is shared on PhysioNet under the agreement of its source, and on no public hub."
    yield "* The same holds for checkpoints and saved predictions. This card has counts and metrics only."


def _with_interval(found: Evaluated, name: str) -> str:
    low, high = found.intervals[name]
    return f"{_number(found.values[name])} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"
