"""Calibration: how far what is called 30 % happens in 30 % of the notes, from saved predictions alone.

What is measured is a column: the second class of a binary task, each label of several, and each class of one of many
against the rest. Where a run's loss weighed the classes, or several labels were scored by a softmax over them, a score
is no probability, and these figures say by how much; `scaling` mends it on validation notes.
"""

import dataclasses

import numpy as np
from scipy.special import expit, logsumexp

from jaxlora.eval.predictions import Predictions

BINS = 10
LEAST = 10  # positives, and negatives, that a slope is fitted to: below that it is noise, and often infinite


@dataclasses.dataclass(frozen=True)
class Curve:
    """A reliability curve: of each bin that is not empty, `[bins]`, the mean probability, the share of positives and
    the number of notes."""

    predicted: np.ndarray
    observed: np.ndarray
    counts: np.ndarray


def evaluate(predictions: Predictions) -> dict[str, float]:
    """Returns the calibration of the predictions of a task of whole notes.

    * brier, log_loss: the mean over the labels; for one of several classes the sum of the squares over the classes, and
      the log-probability of the true one. brier_scaled: 1 is perfect, 0 is the prevalence said of every note.
    * calibration_intercept, calibration_slope of `recalibration`: the median over the columns with `LEAST` positives
      and negatives, of which there are calibration_columns; 0 and 1 are perfect, a slope below 1 is overconfident.
    * ece, ece_mass: the expected calibration error over ece_bins bins of equal width and of equally many notes,
      weighted by their notes. ece_unweighted: the published notebook's, in which every bin weighs the same. The mean
      over the labels; of one of several classes that of the most probable class, and ece_classes the mean over them.
    """
    truth, odds = columns(predictions)
    chances = expit(odds)
    total = ((chances - truth) ** 2).mean(axis=0)
    certain = truth.mean(axis=0)
    fits = _fits(truth, odds)
    intercept, slope = np.median(fits, axis=0) if len(fits) else (np.nan, np.nan)
    reference = (certain * (1 - certain)).sum()
    result = {
        "brier": float(total.sum() if predictions.kind == "multiclass" else total.mean()),
        "brier_scaled": float(1 - total.sum() / reference) if reference else float("nan"),
        "log_loss": _log_loss(predictions, truth, odds),
        "calibration_intercept": float(intercept),
        "calibration_slope": float(slope),
        "calibration_columns": len(fits),
    }
    by_column = [_errors(truth[:, c], chances[:, c]) for c in range(truth.shape[1])]
    errors = dict(zip(("ece", "ece_mass", "ece_unweighted"), np.mean(by_column, axis=0).tolist(), strict=True))
    if predictions.kind == "multiclass":
        right = predictions.logits.argmax(axis=1) == predictions.labels
        errors = dict(zip(errors, _errors(right, chances.max(axis=1)), strict=True)) | {"ece_classes": errors["ece"]}
    return result | errors | {"ece_bins": BINS}


def median_slope(predictions: Predictions) -> float:
    """Returns the slope that `evaluate` has, alone."""
    fits = _fits(*columns(predictions))
    return float(np.median(fits[:, 1])) if len(fits) else float("nan")


def columns(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Returns (truth, log-odds) of a task of whole notes: 0/1 and float64, `[notes, columns]`."""
    p, logits = predictions, predictions.logits.astype(np.float64)
    if p.kind == "multilabel":
        return p.labels.astype(np.int64), logits
    truth = np.eye(len(p.names), dtype=np.int64)[p.labels]
    if p.kind == "binary":
        return truth[:, 1:], logits[:, 1:] - logits[:, :1]
    rest = [logsumexp(np.delete(logits, c, axis=1), axis=1) for c in range(logits.shape[1])]
    return truth, logits - np.stack(rest, axis=1)


def pooled(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a reliability curve is drawn of, (truth, probabilities) `[cases]`: a binary task's notes, every note
    and label of several, and of one of several classes whether the most probable one is right."""
    truth, odds = columns(predictions)
    if predictions.kind == "multiclass":
        return predictions.logits.argmax(axis=1) == predictions.labels, expit(odds.max(axis=1))
    return truth.ravel(), expit(odds.ravel())


def log_loss(truth: np.ndarray, odds: np.ndarray) -> float:
    """Returns the mean negative log-likelihood of 0/1 `truth`, from the log-odds, so that no probability is cut off."""
    return float(np.mean(np.logaddexp(0, odds) - truth * odds))


def recalibration(truth: np.ndarray, odds: np.ndarray) -> tuple[float, float]:
    """Returns the calibration intercept and slope (Cox 1958; Van Calster et al. 2019).

    The slope is that of a logistic regression of the truth on the log-odds; the intercept is that of one with a slope
    of 1, "calibration in the large": above 0 where too little was predicted. NaN where there is no finite fit.

    Args:
      truth: 0/1 `[notes]`. odds: `[notes]`.
    """
    ones = np.ones((len(truth), 1))
    intercept = logistic(ones, truth, odds)[0]
    spread = np.std(odds)
    if not spread:
        return float(intercept), float("nan")
    center = np.mean(odds)
    slope = logistic(np.column_stack([ones, (odds - center) / spread]), truth)[1] / spread
    return float(intercept), float(slope)


def logistic(design: np.ndarray, target: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Returns the coefficients of a logistic regression without penalty, by Newton's method; NaN where there is no
    finite fit, as when the classes can be told apart without error.

    Args:
      design: `[notes, coefficients]`. target: `[notes]`, from 0 to 1. offset: added to the log-odds, `[notes]`.
    """
    found, step = np.zeros(design.shape[1]), np.zeros(design.shape[1])
    slope = 0.0  # of the likelihood where the step began, along the step
    for _ in range(100):
        chance = expit(design @ found + offset)
        gradient = design.T @ (target - chance)
        if gradient @ step < -slope:  # far beyond the top, where the next step would be larger still
            step, slope = step / 2, slope / 2
            found = found - step
            continue
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            break
        slope, found = gradient @ step, found + step
        if np.abs(step).max() < 1e-9:
            return found
    return np.full_like(found, np.nan)


def reliability(truth: np.ndarray, probabilities: np.ndarray, bins: int = BINS, by: str = "width") -> Curve:
    """Returns the reliability curve, binned as scikit-learn's `calibration_curve` does.

    Args:
      truth: 0/1 `[notes]`. probabilities: `[notes]`.
      by: "width", bins of equal width from 0 to 1, or "mass", bins of about as many notes each; ties stay together.
    """
    shares = np.linspace(0, 1, bins + 1)
    edges = shares if by == "width" else np.quantile(probabilities, shares)
    place = np.searchsorted(edges[1:-1], probabilities)
    counts = np.bincount(place, minlength=bins)
    full = counts > 0
    predicted, observed = (
        np.bincount(place, weights=of, minlength=bins)[full] / counts[full] for of in (probabilities, truth)
    )
    return Curve(predicted, observed, counts[full])


def ece(curve: Curve, weighted: bool = True) -> float:
    """Returns the expected calibration error: the mean distance of a curve from the diagonal, each bin weighted by its
    notes, or, as in the published notebook, every bin alike (docs/paper.md)."""
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.counts if weighted else None))


def _errors(truth: np.ndarray, chances: np.ndarray) -> tuple[float, float, float]:
    wide = reliability(truth, chances)
    return ece(wide), ece(reliability(truth, chances, by="mass")), ece(wide, weighted=False)


def _fits(truth: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Returns the finite intercepts and slopes of the columns with enough positives and negatives, `[fitted, 2]`."""
    positives = truth.sum(axis=0)
    enough = np.flatnonzero(np.minimum(positives, len(truth) - positives) >= LEAST)
    fits = [recalibration(truth[:, column], odds[:, column]) for column in enough]
    return np.asarray([fit for fit in fits if np.isfinite(fit).all()]).reshape(-1, 2)


def _log_loss(predictions: Predictions, truth: np.ndarray, odds: np.ndarray) -> float:
    if predictions.kind == "multiclass":
        logits = predictions.logits.astype(np.float64)
        chosen = np.take_along_axis(logits, predictions.labels[:, None].astype(np.int64), axis=1)[:, 0]
        return float(np.mean(logsumexp(logits, axis=1) - chosen))
    return log_loss(truth, odds)
