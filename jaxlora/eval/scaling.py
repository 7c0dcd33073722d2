"""Scaling: predictions made calibrated by one or two numbers, fitted on validation notes and applied to others.

The published notebook fitted both forms (docs/paper.md). Temperature scaling keeps the order of the notes within
every column of a binary task or of several labels; Platt scaling keeps it where the slope is above zero.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

from jaxlora.eval import calibration, metrics
from jaxlora.eval.predictions import Predictions

_FIGURES = ("brier", "log_loss", "calibration_intercept", "calibration_slope", "ece", "ece_mass", "ece_unweighted")
_RANGE = np.log(1e-3), np.log(1e3)  # of temperatures


def evaluate(predictions: Predictions, validation: Predictions) -> dict[str, float]:
    """Returns the temperature of the validation notes, and figures of `calibration.evaluate` after either scaling,
    their names followed by `_temperature` or `_platt`."""
    by = temperature(validation)
    result = {"temperature": by}
    for name, scaled in {
        "temperature": cooled(predictions, by),
        "platt": straightened(predictions, platt(validation)),
    }.items():
        values = calibration.evaluate(scaled)
        result |= {f"{figure}_{name}": values[figure] for figure in _FIGURES}
    return result


def temperature(validation: Predictions) -> float:
    """Returns the temperature T under which the log-likelihood of the validation notes is highest, the logits being
    divided by T (Guo et al. 2017); one for all labels, and 1 where they have one class alone, which would drive it to
    either end."""
    if not len(metrics.scorable(metrics.one_vs_rest(validation)[0])):
        return 1.0

    def loss(log: float) -> float:
        scaled = validation.logits / np.exp(log)
        if validation.kind == "multilabel":
            return calibration.log_loss(validation.labels, scaled)
        chosen = validation.labels[:, None].astype(np.int64)
        return -float(np.take_along_axis(log_softmax(scaled.astype(np.float64), axis=1), chosen, axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=_RANGE, method="bounded", options={"xatol": 1e-4}).x))


def cooled(predictions: Predictions, by: float) -> Predictions:
    """Returns the predictions with their logits divided by a temperature."""
    return dataclasses.replace(predictions, logits=predictions.logits / by)


def platt(validation: Predictions) -> np.ndarray:
    """Returns float64 `[columns, 2]`, offset and slope of each column's log-odds, by logistic regression.

    The targets are Platt's (1999), N + 1 of N + 2 for the positives and 1 of N + 2 for the negatives, so that there is
    a finite fit. A column with one class alone, or of one score, is left as it is.
    """
    truth, odds = calibration.columns(validation)
    lines = np.tile([0.0, 1.0], (truth.shape[1], 1))
    for column in range(truth.shape[1]):
        y, z = truth[:, column], odds[:, column]
        positives, spread, center = y.sum(), z.std(), z.mean()
        if not (0 < positives < len(y) and spread):
            continue
        target = np.where(y, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
        offset, slope = calibration.logistic(np.column_stack([np.ones_like(z), (z - center) / spread]), target)
        if np.isfinite(slope):
            lines[column] = offset - slope * center / spread, slope / spread
    return lines


def platt_scaled(runs: Sequence[Predictions], validation: Sequence[Predictions]) -> list[Predictions]:
    """Returns the predictions of some runs, each after Platt scaling on its own validation notes."""
    return [straightened(run, platt(fitted_on)) for run, fitted_on in zip(runs, validation, strict=True)]


def straightened(predictions: Predictions, lines: np.ndarray) -> Predictions:
    """Returns the predictions with the log-odds of each column scaled by `platt`'s lines; the probabilities of one of
    several classes are made to sum to one again."""
    odds = calibration.columns(predictions)[1] * lines[:, 1] + lines[:, 0]
    if predictions.kind == "binary":
        odds = np.concatenate([np.zeros_like(odds), odds], axis=1)
    elif predictions.kind == "multiclass":
        odds = np.log(np.maximum(expit(odds), np.finfo(np.float64).tiny))
    return dataclasses.replace(predictions, logits=odds)
