"""TF-IDF and logistic regression: the floor that every row of a table should be held against.

It reads the same prepared notes, whole, and writes the same predictions, so that the evaluation cannot tell it apart.
"""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from jaxlora import files
from jaxlora.data import builders
from jaxlora.data.builders import Prepared
from jaxlora.data.examples import OUTCOMES, Task
from jaxlora.data.groups import encoded
from jaxlora.errors import UserError
from jaxlora.eval import metrics
from jaxlora.eval.evaluate import evaluate
from jaxlora.eval.predictions import Predictions
from jaxlora.train import run_config

Features = dict[str, csr_matrix]  # by split, `[notes, words]`
Logits = dict[str, np.ndarray]  # by split, `[notes, outputs]`

_TRIED = 100  # labels that C is chosen by
# liblinear shrinks the intercept as it does the weights, the less so the larger this is. A rare label needs one far
# below zero; where that is dear, its words have to say no, and the notes come out in any order.
_INTERCEPT = 4.0
_TOLERANCE, _STEPS = 0.1, 1000  # what liblinear takes for its dual form, and more steps than are needed


def fit(config: ConfigDict, folder: str) -> None:
    """Fits the words of the training notes to their outcome and writes the predictions for the other two splits.

    The strength of the regularisation is chosen on the validation notes, of many labels by `_TRIED` of them, rare ones
    and frequent ones. Beside `predictions-SPLIT.npz` it writes `metrics-SPLIT.json`, `config.json` and `log.jsonl`, as
    every run does; the words themselves, which are of notes, are kept nowhere.

    Args:
      config: `data.dir`, `data.name`, `class_weights`, and `tfidf`: the values of C to try, and how many words and
        pairs of words there are at most.

    Raises:
      UserError: there is no such dataset, it is of no outcome of whole notes, or there is no C to try.
    """
    prepared = builders.load(config.data.dir, config.data.name)
    task = prepared.task
    if task.kind not in OUTCOMES:
        raise UserError(f"dataset {task.name}: is of kind {task.kind}; TF-IDF is for outcomes of whole notes")
    if not prepared.splits.get("validation"):
        raise UserError(f"dataset {task.name} has no validation notes, by which TF-IDF chooses C; prepare it with some")
    if not config.tfidf.c or min(config.tfidf.c) <= 0:
        raise UserError(f"config.tfidf.c is {tuple(config.tfidf.c)}; give one value or more, each above 0")
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=config.tfidf.words)
    train = _read(prepared, "train")
    features, labels = words.fit_transform(row["text"] for row in train), _labels(task, train)
    rows = {split: _read(prepared, split) for split in ("validation", "test")}
    others = {split: words.transform(row["text"] for row in of) for split, of in rows.items()}
    several, outputs = task.kind == "multilabel", np.arange(len(task.outputs))
    tried = _spread(labels) if several else outputs
    balanced = "balanced" if config.class_weights else None

    def predicted(c: float, columns: np.ndarray) -> Logits:
        if several:
            return _of_labels(features, labels, others, c, columns, f"{task.name}, C = {c:g}")
        return _of_classes(features, labels, others, len(outputs), c, balanced)

    best, highest, log = {}, -np.inf, []
    for number, c in enumerate(config.tfidf.c, 1):
        logits = predicted(c, tried)
        area = _auroc(_predictions(task, rows["validation"], logits["validation"]), tried)
        log.append(json.dumps({"step": number, "c": c, "auroc": area}))
        if area >= highest:
            best, highest, chosen = logits, area, c
    if len(tried) < len(outputs):
        more = predicted(chosen, np.setdiff1d(outputs, tried))
        best = {split: best[split] + more[split] for split in best}
    counts = {"train_positives": labels.sum(axis=0, dtype=np.int64)} if several else {}
    found = {split: _predictions(task, rows[split], best[split], **counts) for split in best}
    for split, predictions in found.items():
        predictions.save(Path(folder) / f"predictions-{split}.npz")
        values = evaluate(predictions, None if split == "validation" else found["validation"])
        files.write_json(Path(folder) / f"metrics-{split}.json", values)
    files.write(Path(folder) / "log.jsonl", "\n".join(log) + "\n")
    run_config.write(folder, config)


def _read(prepared: Prepared, split: str) -> list[dict]:
    source = prepared.split(split)
    return list(source.__getitems__(range(len(source))))


def _labels(task: Task, rows: list[dict]) -> np.ndarray:
    """Returns the labels of some notes, `[notes]` or 0/1 `[notes, labels]`."""
    if task.kind != "multilabel":
        return np.asarray([row["label"] for row in rows], np.int64)
    hot = np.zeros((len(rows), len(task.labels)), np.uint8)
    for number, row in enumerate(rows):
        hot[number, row["label"]] = 1
    return hot


def _spread(labels: np.ndarray) -> np.ndarray:
    """Returns the columns of `_TRIED` of the labels `[notes, labels]`, evenly from the most frequent to the rarest."""
    order = np.argsort(-labels.sum(axis=0, dtype=np.int64), kind="stable")
    return np.sort(order[np.linspace(0, len(order) - 1, min(_TRIED, len(order))).astype(int)])


def _auroc(predictions: Predictions, columns: np.ndarray) -> float:
    """Returns the AUROC over some of the outputs, 0 where no output has notes of both classes."""
    truth, scores = metrics.one_vs_rest(predictions)
    columns = columns[: truth.shape[1]]  # two classes have one score
    return float(np.nan_to_num(metrics.auroc(truth[:, columns], scores[:, columns])))


def _of_labels(
    features: csr_matrix, labels: np.ndarray, others: Features, c: float, columns: np.ndarray, doing: str
) -> Logits:
    """Returns the logits of some labels, one model a label; those of the other labels are zero.

    The dual form of the optimisation is several times as quick as the primal where notes are fewer than words.

    Args:
      features: of the training notes. labels: theirs, `[notes, labels]`. others: features of the other splits.
      c: the inverse of the regularisation. columns: of the labels. doing: what the progress bar says.
    """
    result = {split: np.zeros((of.shape[0], labels.shape[1]), np.float32) for split, of in others.items()}
    model = LogisticRegression(
        C=c,
        solver="liblinear",
        dual=True,
        tol=_TOLERANCE,
        max_iter=_STEPS,
        intercept_scaling=_INTERCEPT / np.sqrt(c),
        random_state=0,
    )
    for label in tqdm(columns, desc=doing, unit="label", disable=None, leave=False, delay=2):
        positives = labels[:, label].sum(dtype=np.int64)
        if 0 < positives < len(labels):
            model.fit(features, labels[:, label])
            for split, of in others.items():
                result[split][:, label] = model.decision_function(of)
        else:  # nothing to learn: the odds of the training notes, one note added to either side
            for split in others:
                result[split][:, label] = np.log((positives + 1) / (len(labels) - positives + 1))
    return result


def _of_classes(
    features: csr_matrix, labels: np.ndarray, others: Features, outputs: int, c: float, balanced: str | None
) -> Logits:
    """Returns the logits of one of several classes, as a head gives them; of two classes the first has 0.

    Args:
      labels: of the training notes, `[notes]`. balanced: "balanced" weighs classes by how rare they are.
    """
    result = {split: np.zeros((of.shape[0], outputs), np.float32) for split, of in others.items()}
    if len(np.unique(labels)) < 2:  # nothing to learn
        return result
    model = LogisticRegression(C=c, class_weight=balanced, max_iter=300).fit(features, labels)
    for split, of in others.items():
        decided = model.decision_function(of)
        if decided.ndim == 1:  # of two classes: the logit of the second
            decided = np.stack([np.zeros_like(decided), decided], axis=1)
        result[split][:] = decided.min() - 1  # a class that no training note has comes last
        result[split][:, model.classes_] = decided
    return result


def _predictions(task: Task, rows: list[dict], logits: np.ndarray, **counts: np.ndarray) -> Predictions:
    ids, patients = (np.asarray([row[name] for row in rows]) for name in ("id", "patient"))
    groups = encoded([row.get("groups", {}) for row in rows])
    about = task.kind, task.outputs, ids, patients, _labels(task, rows), logits
    return Predictions(*about, **counts, groups=groups)
