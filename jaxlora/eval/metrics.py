"""Metrics, from saved predictions alone: arrays in, numbers out. scikit-learn computes what it can."""

import warnings

import numpy as np
from sklearn import metrics

from jaxlora.eval.predictions import Predictions


def evaluate(predictions: Predictions) -> dict[str, float]:
    """Returns the metrics that fit the kind of the predictions.

    "lm": perplexity, base_perplexity (no adapter), tokens, n. Otherwise auroc, auprc, f1 (macro), f1_micro, accuracy,
    n, and labels_scored; "multiclass" has auroc_ovo too, the paper's one-vs-one average (section 3). Of "tokens" and
    "span" those of `of_entities` and `of_answers`.
    """
    p = predictions
    if p.kind == "lm":
        return {
            "perplexity": perplexity(p.nll, p.tokens),
            "base_perplexity": perplexity(p.base_nll, p.tokens),
            "tokens": int(p.tokens.sum()),
            "n": len(p.ids),
        }
    if p.kind == "tokens":
        return of_entities(p)
    if p.kind == "span":
        return of_answers(p)
    truth, scores = one_vs_rest(p)
    chosen = (p.logits > 0).astype(np.uint8) if p.kind == "multilabel" else p.logits.argmax(axis=1)
    scored = scorable(truth)
    result = {
        "auroc": auroc(truth, scores),
        "auprc": auprc(truth, scores),
        "f1": f1(p.labels, chosen, average="macro", labels=scored if p.kind == "multilabel" else None),
        "f1_micro": f1(p.labels, chosen, average="micro"),
        "accuracy": float((p.labels == chosen).mean()),
        "n": len(p.ids),
        "labels_scored": len(scored),
    }
    if p.kind == "multiclass":
        result["auroc_ovo"] = auroc_one_vs_one(p.labels, scores)
    return result


def of_entities(predictions: Predictions) -> dict[str, float]:
    """Returns f1, precision and recall over all entities of all notes, f1_TYPE of each type, accuracy (of the tags),
    entities (annotated) and n (notes).

    An entity counts where type, first and last character are exactly the annotator's. What is annotated in a part that
    was cut off, or under another entity, which BIO cannot tell, counts as missed. A type that is neither annotated nor
    predicted has no F1.
    """
    p = predictions
    names = [name.removeprefix("B-") for name in p.names[1::2]]
    found, truth = (set(map(tuple, rows.tolist())) for rows in (p.found, p.truth))
    result = {
        "f1": _f1_of_sets(found, truth),
        "precision": len(found & truth) / len(found) if found else 0.0,
        "recall": len(found & truth) / len(truth) if truth else 0.0,
    }
    for number, name in enumerate(names):
        result[f"f1_{name}"] = _f1_of_sets(*({row for row in rows if row[3] == number} for rows in (found, truth)))
    accuracy = float((p.labels == p.chosen).mean()) if len(p.labels) else float("nan")
    return result | {"accuracy": accuracy, "entities": len(truth), "n": len(p.ids)}


def _f1_of_sets(found: set, truth: set) -> float:
    return 2 * len(found & truth) / (len(found) + len(truth)) if found or truth else float("nan")


def of_answers(predictions: Predictions) -> dict[str, float]:
    """Returns exact match and f1 over all questions, over those with an answer (_answerable) and over those without
    (none_found: the share of these where none was given), and n, the questions; as shares, not in percent."""
    p = predictions
    answerable = p.labels == 1
    exact, overlap = p.scores.astype(np.float64).T
    return {
        "exact": _mean(exact.tolist()),
        "f1": _mean(overlap.tolist()),
        "exact_answerable": _mean(exact[answerable].tolist()),
        "f1_answerable": _mean(overlap[answerable].tolist()),
        "none_found": _mean(exact[~answerable].tolist()),
        "n": len(p.ids),
    }


def one_vs_rest(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Returns (truth, scores), `[notes, labels]`: 0/1, and what ranks the notes for each label.

    Several labels are ranked by their logits, one of several classes by its probability, and a binary task has the one
    column of its second class. The published code ranked several labels by a softmax over them (paper section 0).
    """
    p = predictions
    if p.kind == "multilabel":
        return p.labels, p.logits
    truth, scores = np.eye(len(p.names), dtype=np.uint8)[p.labels], softmax(p.logits)
    return (truth[:, 1:], scores[:, 1:]) if p.kind == "binary" else (truth, scores)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of `[notes, labels]` over the labels, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> float:
    """Returns exp(total nll / total tokens): every token weighs the same, unlike the paper's mean of batch means.

    Args:
      nll, tokens: `[notes]`.
    """
    return float(np.exp(np.sum(nll, dtype=np.float64) / max(np.sum(tokens, dtype=np.float64), 1.0)))


def scorable(truth: np.ndarray) -> np.ndarray:
    """Returns the columns of 0/1 `truth: [notes, labels]` that have both a positive and a negative."""
    positives = truth.sum(axis=0)
    return np.flatnonzero((positives > 0) & (positives < len(truth)))


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Returns the AUROC, averaged over the labels that have both classes (one-vs-rest); NaN where none has.

    Args:
      truth: 0/1 `[notes, labels]`. scores: `[notes, labels]`, any increasing function of the probability.
    """
    columns = scorable(truth)
    return _mean([metrics.roc_auc_score(truth[:, c], scores[:, c]) for c in columns])


def auprc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Returns the average precision, averaged like `auroc`; scikit-learn's own average counts a label without
    positives as 0."""
    columns = scorable(truth)
    return _mean([metrics.average_precision_score(truth[:, c], scores[:, c]) for c in columns])


def auroc_one_vs_one(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the macro one-vs-one AUROC over the classes that occur; NaN where fewer than two do.

    Args:
      labels: int `[notes]`. probabilities: `[notes, classes]`.
    """
    present = np.unique(labels)
    pairs = []
    for i, a in enumerate(present):
        for b in present[i + 1 :]:
            of_pair = np.isin(labels, (a, b))
            first = labels[of_pair] == a
            forward = metrics.roc_auc_score(first, probabilities[of_pair, a])
            backward = metrics.roc_auc_score(~first, probabilities[of_pair, b])
            pairs.append((forward + backward) / 2)
    return _mean(pairs)


def f1(truth: np.ndarray, chosen: np.ndarray, average: str, labels: np.ndarray | None = None) -> float:
    """Returns scikit-learn's F1 of class numbers or 0/1 matrices, a label never predicted counting as 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metrics.f1_score(truth, chosen, average=average, labels=labels, zero_division=0))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
