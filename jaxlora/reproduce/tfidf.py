"""TF-IDF and logistic regression: the floor that every row of a table should be held against.

It reads the same prepared notes, whole, and writes the same predictions, so that the evaluation cannot tell it apart.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from jaxlora import files
from jaxlora.data import builders
from jaxlora.data.builders import Prepared
from jaxlora.data.examples import OUTCOMES
from jaxlora.data.groups import encoded
from jaxlora.errors import UserError
from jaxlora.eval import metrics
from jaxlora.eval.predictions import Predictions
from jaxlora.train import run_config


def fit(config: ConfigDict, folder: str) -> None:
    """Fits the words of the training notes to their outcome and writes the predictions for the other two splits.

    The strength of the regularisation is chosen on the validation notes. Beside `predictions-SPLIT.npz` it writes
    `metrics-SPLIT.json`, `config.json` and `log.jsonl`, as every run does; the words themselves, which are of notes,
    are kept nowhere.

    Args:
      config: `data.dir`, `data.name`, `class_weights`, and `tfidf`: the values of C to try, and how many words and
        pairs of words there are at most.

    Raises:
      UserError: there is no such dataset, or it is of no outcome of whole notes.
    """
    prepared = builders.load(config.data.dir, config.data.name)
    task = prepared.task
    if task.kind not in OUTCOMES:
        raise UserError(f"dataset {task.name}: is of kind {task.kind}; TF-IDF is for outcomes of whole notes")
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=config.tfidf.words)
    train = _read(prepared, "train")
    features, labels = words.fit_transform(row["text"] for row in train), _labels(prepared, train)
    if not prepared.splits.get("validation"):
        raise UserError(f"dataset {task.name} has no validation notes, by which TF-IDF chooses C; prepare it with some")
    others = {split: _read(prepared, split) for split in ("validation", "test")}
    of_others = {split: words.transform(row["text"] for row in rows) for split, rows in others.items()}
    balanced = "balanced" if config.class_weights and task.kind != "multilabel" else None
    scores, best, log = [], {}, []
    for number, c in enumerate(config.tfidf.c, 1):
        logits = _logits(features, labels, of_others, len(task.outputs), c, balanced)
        found = {split: _predictions(prepared, rows, logits[split]) for split, rows in others.items()}
        scores.append(np.nan_to_num(metrics.evaluate(found["validation"])["auroc"]))
        log.append(json.dumps({"step": number, "c": c, "auroc": scores[-1]}))
        if scores[-1] == max(scores):
            best = found
    for split, predictions in best.items():
        predictions.save(Path(folder) / f"predictions-{split}.npz")
        files.write_json(Path(folder) / f"metrics-{split}.json", metrics.evaluate(predictions))
    files.write(Path(folder) / "log.jsonl", "\n".join(log) + "\n")
    run_config.write(folder, config)


def _read(prepared: Prepared, split: str) -> list[dict]:
    source = prepared.split(split)
    return list(source.__getitems__(range(len(source))))


def _labels(prepared: Prepared, rows: list[dict]) -> np.ndarray:
    """Returns the labels of some notes, `[notes]` or 0/1 `[notes, labels]`."""
    if prepared.task.kind != "multilabel":
        return np.asarray([row["label"] for row in rows], np.int64)
    hot = np.zeros((len(rows), len(prepared.task.labels)), np.uint8)
    for number, row in enumerate(rows):
        hot[number, row["label"]] = 1
    return hot


def _logits(
    features: csr_matrix,
    labels: np.ndarray,
    others: dict[str, csr_matrix],
    outputs: int,
    c: float,
    balanced: str | None,
) -> dict[str, np.ndarray]:
    """Returns the logits of the notes of each split, `[notes, outputs]`, as a head gives them.

    Args:
      features: of the training notes. labels: theirs. others: features by split.
      c: the inverse of the regularisation. balanced: "balanced" weighs classes by how rare they are.
    """
    result = {split: np.zeros((of.shape[0], outputs), np.float32) for split, of in others.items()}
    if labels.ndim == 2:
        for label in range(outputs):
            positives = labels[:, label].sum()
            if 0 < positives < len(labels):
                model = _fitted(features, labels[:, label], c, None, "liblinear")
                for split, of in others.items():
                    result[split][:, label] = model.decision_function(of)
            else:  # nothing to learn: the odds of the training notes, one note added to either side
                for split in others:
                    result[split][:, label] = np.log((positives + 1) / (len(labels) - positives + 1))
        return result
    if len(np.unique(labels)) < 2:  # nothing to learn
        return result
    model = _fitted(features, labels, c, balanced, "lbfgs")
    for split, of in others.items():
        decided = model.decision_function(of)
        if decided.ndim == 1:  # of two classes: the logit of the second
            result[split][:, model.classes_[1]] = decided
        else:
            result[split][:] = decided.min() - 1  # a class that no training note has comes last
            result[split][:, model.classes_] = decided
    return result


def _fitted(features: csr_matrix, labels: np.ndarray, c: float, balanced: str | None, solver: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a ranking is there long before the last digit is
        return LogisticRegression(C=c, class_weight=balanced, solver=solver, max_iter=300).fit(features, labels)


def _predictions(prepared: Prepared, rows: list[dict], logits: np.ndarray) -> Predictions:
    ids, patients = (np.asarray([row[name] for row in rows]) for name in ("id", "patient"))
    about = prepared.task.kind, prepared.task.outputs, ids, patients
    groups = encoded([row.get("groups", {}) for row in rows])
    return Predictions(*about, _labels(prepared, rows), logits, groups=groups)
