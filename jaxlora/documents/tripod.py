"""The TRIPOD+AI checklist (Collins et al., BMJ 2024;385:e078378) with what a run's folder can answer filled in.

The items are in our own short words: the authors' text and its explanation are to be read beside them.
"""

from jaxlora.documents.facts import FIGURES, Evaluated, Facts, Trained, Words

TO_BE_WRITTEN = "**to be written**"
_OUTPUTS = {
    "lm": "the probability of each next token; the loss of each note is saved",
    "tokens": "a tag for each token; the entities' places are saved",
    "span": "the likeliest answer, or none; its place is saved",
}
# Section, number, what the item asks for.
ITEMS = (
    (
        "Title",
        "1",
        "a study that develops or evaluates a multivariable prediction model, its population and its outcome",
    ),
    ("Abstract", "2", "the items of TRIPOD+AI for Abstracts"),
    ("Introduction", "3", "the setting, the care pathway, existing models, known inequalities between groups"),
    ("Introduction", "4", "the objectives: development, evaluation, or both"),
    ("Methods", "5", "sources of the data, and their dates"),
    ("Methods", "6", "participants: setting, eligibility, treatments"),
    ("Methods", "7", "preparation of the data, and whether it was alike across groups"),
    ("Methods", "8", "the outcome, how and when it was assessed"),
    ("Methods", "9", "the predictors, how they were chosen and measured"),
    ("Methods", "10", "the sample size, and why it is enough"),
    ("Methods", "11", "missing data"),
    ("Methods", "12", "analysis: partition of the data, model, tuning, measures, recalibration"),
    ("Methods", "13", "class imbalance, and what was done about it"),
    ("Methods", "14", "what was done for fairness, and why"),
    ("Methods", "15", "the model's output, and the thresholds"),
    ("Methods", "16", "differences between the data of training and of evaluation"),
    ("Methods", "17", "ethical approval"),
    ("Open science", "18", "funding, conflicts of interest, protocol, registration, sharing of data and code"),
    ("Patients and public", "19", "their involvement, or that there was none"),
    ("Results", "20", "the flow of participants, and what they are like, by setting and group"),
    ("Results", "21", "participants and events in each analysis"),
    ("Results", "22", "the whole model, so that it can be run and evaluated by others"),
    ("Results", "23", "performance with intervals, overall and in groups"),
    ("Results", "24", "updating of the model, if there was any"),
    ("Discussion", "25", "interpretation, with fairness, objectives and earlier studies"),
    ("Discussion", "26", "limitations, and their effect"),
    ("Discussion", "27", "usability: poor or missing input, who interacts with it, next steps"),
)


def tripod(facts: Facts) -> str:
    """Returns the text of tripod-ai.md."""
    answers = _answers(facts)
    lines = [
        f"# TRIPOD+AI: {facts.title}",
        "",
        f"{len(answers)} of {len(ITEMS)} items have what the run's folder knows, and each of them wants your own words "
        f"too; the others are {TO_BE_WRITTEN}. Read the checklist itself beside it: BMJ 2024;385:e078378.",
        "",
        "| section | item | asks for | answer |",
        "|---|---:|---|---|",
    ]
    lines += [
        f"| {section} | {number} | {asks} | {answers.get(number, TO_BE_WRITTEN)} |" for section, number, asks in ITEMS
    ]
    return "\n".join(lines) + "\n"


def _answers(facts: Facts) -> dict[str, str]:
    """Returns what is known, by the number of the item."""
    c, answers = facts.config, {}
    notes = ", ".join(f"{split} {count:,}" for split, count in facts.splits.items())
    answers["5"] = f"{facts.dataset}{f': notes of {notes}' if notes else ''}; dates {TO_BE_WRITTEN}"
    answers["7"] = f"{_read(facts)}; the recipe is in the package's docs/data.md"
    answers["9"] = "the text of the note alone"
    answers["12"] = f"{_fitting(facts)}; intervals: bootstrap over patients"
    if facts.kind in ("binary", "multiclass"):
        weighted = "weighted by the inverse of their frequency" if c.class_weights else "not weighted"
        answers["13"] = f"classes {weighted} in the loss"
    outputs = f"{len(facts.labels):,} outputs, their logits saved for each note; thresholds {TO_BE_WRITTEN}"
    answers["15"] = _OUTPUTS.get(facts.kind, outputs)
    answers["18"] = f"code: jaxlora; data: under the agreement of its source; the rest {TO_BE_WRITTEN}"
    answers["21"] = "; ".join(_counted(split, found) for split, found in facts.evaluated.items())
    if isinstance(facts.model, Trained):
        adapters = "; ".join(f"{name} `{described}`" for name, described in facts.model.adapters.items()) or "none"
        files = "config.json and the checkpoint"
        answers["22"] = f"base fingerprint `{facts.model.base_fingerprint}`; adapters: {adapters}; {files}"
    first = next(iter(FIGURES[facts.kind].items()))
    answers["23"] = "; ".join(_performance(split, found, *first) for split, found in facts.evaluated.items())
    return answers


def _read(facts: Facts) -> str:
    if isinstance(facts.model, Words):
        return f"whole notes, as the TF-IDF of at most {facts.model.most:,} words and pairs of words"
    data = facts.config.data
    cut = f"cut to their first {data.length:,} tokens" if data.long_notes == "truncate" else "in pieces"
    return f"notes tokenized by the base's tokenizer, {cut}"


def _fitting(facts: Facts) -> str:
    """Returns the model, what was fitted and how it was chosen."""
    m, c = facts.model, facts.config
    if isinstance(m, Words):
        tried = ", ".join(f"{value:g}" for value in m.tried)
        return f"logistic regression with an L2 penalty; C of {tried}, by the AUROC on validation notes: {m.c:g}"
    trained = ", ".join(f"{name} ({m.partitions[name]:,} parameters)" for name in sorted(m.trained))
    return (
        f"base {m.base}; trained: {trained}; AdamW, peak learning rate {c.learning_rate:g}, epochs {c.epochs}, "
        f"{c.batch_size} rows an update, seed {c.seed}; checkpoint: {c.select}"
    )


def _counted(split: str, found: Evaluated) -> str:
    events = f", {found.positives:,} with the event" if found.positives is not None else ""
    return f"{split}: {found.notes:,} notes of {found.patients:,} patients{events}"


def _performance(split: str, found: Evaluated, name: str, title: str) -> str:
    low, high = found.intervals[name]
    groups = "groups: model-card.md" if found.groups else f"groups {TO_BE_WRITTEN}"
    return f"{split}: {title} {found.values[name]:.3f} (95 % interval {low:.3f} to {high:.3f}); {groups}"
