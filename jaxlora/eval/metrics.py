"""Metrics, from saved predictions alone: arrays in, numbers out. scikit-learn computes what it can."""

import itertools
import warnings
from collections.abc import Callable

import numpy as np
from sklearn import metrics

from jaxlora.eval.entities import of_entities
from jaxlora.eval.predictions import Predictions

STRATA = {"lt10": (0, 10), "10_99": (10, 100), "100_999": (100, 1000), "ge1000": (1000, np.inf)}


def evaluate(predictions: Predictions, batch_size: int | None = None) -> dict[str, float]:
    """Returns the metrics that fit the kind of the predictions.

    "lm": perplexity, base_perplexity (no adapter), tokens, n. Of "tokens" and "span" those of `of_entities` and
    `of_answers`. Otherwise auroc, auprc (means over the labels with both classes), f1 (macro), f1_micro, accuracy, n,
    labels_scored and labels_skipped; "multiclass" has auroc_ovo and auprc_ovo too, the paper's one-vs-one average
    (docs/paper.md); it and "multilabel" have auroc_micro and auprc_micro, over all pairs of a note and a label, and
    "multilabel" has auroc_paper and auprc_paper, by scores as the published code had them, and where the predictions
    have the labels' counts in training auroc_STRATUM, auprc_STRATUM and labels_STRATUM for the strata of `STRATA`.

    Args:
      batch_size: gives perplexity_paper, see `batch_mean_perplexity`.
    """
    p = predictions
    if p.kind == "lm":
        result = {
            "perplexity": perplexity(p.nll, p.tokens),
            "base_perplexity": perplexity(p.base_nll, p.tokens),
            "tokens": int(p.tokens.sum()),
            "n": len(p.ids),
        }
        if batch_size:
            result["perplexity_paper"] = batch_mean_perplexity(p.nll, p.tokens, batch_size)
        return result
    if p.kind == "tokens":
        return of_entities(p)
    if p.kind == "span":
        return of_answers(p)
    truth, scores = one_vs_rest(p)
    labels = chosen(p)
    scored = scorable(truth)
    result = {
        "auroc": auroc(truth, scores),
        "auprc": auprc(truth, scores),
        "f1": f1(p.labels, labels, average="macro", labels=scored if p.kind == "multilabel" else None),
        "f1_micro": f1(p.labels, labels, average="micro"),
        "accuracy": float((p.labels == labels).mean()),
        "n": len(p.ids),
        "labels_scored": len(scored),
        "labels_skipped": truth.shape[1] - len(scored),
    }
    if p.kind == "multiclass":
        result["auroc_ovo"] = auroc_one_vs_one(p.labels, scores)
        result["auprc_ovo"] = auprc_one_vs_one(p.labels, scores)
    if p.kind != "binary":
        result["auroc_micro"], result["auprc_micro"] = (of(*map(_column, (truth, scores))) for of in (auroc, auprc))
    if p.kind == "multilabel":
        truth, published = one_vs_rest(p, paper=True)
        result["auroc_paper"], result["auprc_paper"] = auroc(truth, published), auprc(truth, published)
    if len(p.train_positives):
        for name, columns in strata(p.train_positives).items():
            part = truth[:, columns], scores[:, columns]
            result |= {f"auroc_{name}": auroc(*part), f"auprc_{name}": auprc(*part)}
            result[f"labels_{name}"] = len(scorable(part[0]))
    return result


def chosen(predictions: Predictions) -> np.ndarray:
    """Returns the likeliest class, int `[notes]`, or of several labels those above one half, 0/1 `[notes, labels]`."""
    logits = predictions.logits
    return (logits > 0).astype(np.uint8) if predictions.kind == "multilabel" else logits.argmax(axis=1)


def strata(train_positives: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the columns of the labels in each stratum of `STRATA`, by their positives in the training split."""
    return {
        name: np.flatnonzero((train_positives >= low) & (train_positives < high))
        for name, (low, high) in STRATA.items()
    }


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


def one_vs_rest(predictions: Predictions, paper: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns (truth, scores), `[notes, labels]`: 0/1, and what ranks the notes for each label.

    Several labels are ranked by their logits, one of several classes by its probability, and a binary task has the one
    column of its second class.

    Args:
      paper: ranks several labels by a softmax over them, as the published code did (docs/paper.md): a note's score
        for a label then depends on its other labels.
    """
    p = predictions
    if p.kind == "multilabel":
        return p.labels, softmax(p.logits) if paper else p.logits
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


def batch_mean_perplexity(nll: np.ndarray, tokens: np.ndarray, batch_size: int) -> float:
    """Returns exp(mean over batches of total nll / total tokens of the batch), the published figure (docs/paper.md).

    Args:
      nll, tokens: `[notes]`, in the order of the batches. batch_size: notes in a batch; the last one may be smaller.
    """
    starts = np.arange(0, len(nll), batch_size)
    sums = [np.add.reduceat(np.asarray(x, np.float64), starts) for x in (nll, tokens)]
    return float(np.exp(np.mean(sums[0] / np.maximum(sums[1], 1.0))))


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
    return _one_vs_one(metrics.roc_auc_score, labels, probabilities)


def auprc_one_vs_one(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the average precision, averaged like `auroc_one_vs_one`."""
    return _one_vs_one(metrics.average_precision_score, labels, probabilities)


def _one_vs_one(metric: Callable, labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean over ordered pairs of classes: the first told from the second by its own probability."""
    values = []
    for a, b in itertools.permutations(np.unique(labels), 2):
        of_pair = np.isin(labels, (a, b))
        values.append(metric(labels[of_pair] == a, probabilities[of_pair, a]))
    return _mean(values)


def _column(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1)


def f1(truth: np.ndarray, chosen: np.ndarray, average: str, labels: np.ndarray | None = None) -> float:
    """Returns scikit-learn's F1 of class numbers or 0/1 matrices, a label never predicted counting as 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metrics.f1_score(truth, chosen, average=average, labels=labels, zero_division=0))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
