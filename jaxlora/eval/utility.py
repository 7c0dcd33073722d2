"""Utility: what acting on the predictions of a binary task would bring, and how much work it would be.

A threshold is a probability above which one acts; it says too how many needless actions one would take for a needed one
(at 20 %, four). Net benefit counts by that rate (Vickers and Elkin 2006), and is to be held against acting on all notes
and on none, which is 0.
"""

import dataclasses

import numpy as np

RANGE = np.linspace(0.01, 0.5, 50)  # thresholds of a curve, unless others are given
TABLE = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclasses.dataclass(frozen=True)
class Decision:
    """A decision curve: net benefit per note, `[thresholds]`, of the model and of acting on all notes."""

    thresholds: np.ndarray
    model: np.ndarray
    everyone: np.ndarray


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a threshold means in a hundred notes: those one acts on, of them rightly and needlessly, those missed."""

    threshold: float
    alerts: float
    right: float
    needless: float
    missed: float
    sensitivity: float
    specificity: float
    ppv: float
    npv: float
    net_benefit: float


def decision_curve(truth: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray = RANGE) -> Decision:
    """Returns the decision curve.

    Args:
      truth: 0/1 `[notes]`. probabilities: `[notes]`. thresholds: above 0 and below 1; one acts at and above them.

    Raises:
      ValueError: a threshold is not between 0 and 1.
    """
    thresholds = np.asarray(thresholds, np.float64)
    if not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError("thresholds: not all between 0 and 1")
    order = np.argsort(probabilities)
    sorted_truth = np.asarray(truth)[order]
    first = np.searchsorted(np.asarray(probabilities)[order], thresholds)
    above = len(sorted_truth) - first
    right = sorted_truth.sum() - np.concatenate([[0], np.cumsum(sorted_truth)])[first]
    price = thresholds / (1 - thresholds)
    prevalence = np.mean(truth)
    model = (right - (above - right) * price) / len(sorted_truth)
    return Decision(thresholds, model, prevalence - (1 - prevalence) * price)


def workload(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> Workload:
    """Returns what acting at and above a threshold means; a share of none is NaN.

    Args:
      truth: 0/1 `[notes]`. probabilities: `[notes]`.
    """
    acted, ill = np.asarray(probabilities) >= threshold, np.asarray(truth).astype(bool)
    right, needless, missed = (acted & ill).mean(), (acted & ~ill).mean(), (~acted & ill).mean()
    spared = 1 - right - needless - missed
    return Workload(
        threshold=threshold,
        alerts=100 * (right + needless),
        right=100 * right,
        needless=100 * needless,
        missed=100 * missed,
        sensitivity=_share(right, missed),
        specificity=_share(spared, needless),
        ppv=_share(right, needless),
        npv=_share(spared, missed),
        net_benefit=float(decision_curve(truth, probabilities, np.asarray([threshold])).model[0]),
    )


def _share(part: float, other: float) -> float:
    return float(part / (part + other)) if part + other else float("nan")
