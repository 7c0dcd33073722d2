"""What every figure is drawn from: the saved predictions and logs of the runs of one row, boiled down to curves.

A row may have been trained with several seeds. Its curve is then of all of them: the mean of their sensitivities (or
precisions, net benefits, losses) at each point, and one reliability curve of all their notes together.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from jaxlora.eval import calibration, metrics, scaling, utility
from jaxlora.eval.predictions import Predictions

GRID = np.linspace(0, 1, 101)
HISTOGRAM = np.linspace(0, 1, 41)  # edges of the bins of a histogram of probabilities
GIVEN = "scores as given"  # and not scaled on validation notes
_BIN = 20  # cases of a bin of a reliability curve, at the least
_WINDOW = 20  # a loss is averaged over the last twentieth of its updates

Log = Sequence[Mapping[str, float]]  # the lines of a run's log.jsonl


@dataclasses.dataclass(frozen=True)
class Ranked:
    """How a row ranks the notes: means over its runs and over the labels with both classes, each against the rest.

    Attributes:
      sensitivity: at each 1 − specificity of `GRID`. precision: at each sensitivity of it.
      prevalence: mean share of positives of these labels.
      labels: int `[scored]`, which columns these are. areas: the AUROC of each, mean over the runs, `[scored]`.
    """

    sensitivity: np.ndarray
    precision: np.ndarray
    prevalence: float
    labels: np.ndarray
    areas: np.ndarray


@dataclasses.dataclass(frozen=True)
class Risks:
    """What the scores of a row are worth as probabilities.

    Attributes:
      reliability: of `calibration.pooled`, in bins of as many cases each.
      low, high: of each bin, Wilson's 95 % interval of the share of positives, of as many cases as one run has.
      histogram: the share of the cases between each two edges of `HISTOGRAM`.
      decision: net benefit; None but of a binary task.
    """

    reliability: calibration.Curve
    low: np.ndarray
    high: np.ndarray
    histogram: np.ndarray
    decision: utility.Decision | None


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of one row of one task of whole notes.

    Attributes:
      kind: of the predictions. notes: of the test split.
      positives: test notes that have each label, `[columns]`.
      ranked: None where no label has both classes.
      given: of the scores as they are.
      scaled: of the scores after Platt scaling on validation notes, `fitted_on` of them; None where a run has none.
    """

    kind: str
    notes: int
    positives: np.ndarray
    ranked: Ranked | None
    given: Risks
    scaled: Risks | None
    fitted_on: int


def of_row(runs: Sequence[Predictions], validation: Sequence[Predictions] = ()) -> Curves:
    """Returns the curves of the runs of a row.

    Args:
      validation: the predictions of each run for its validation notes; () where one of them has none.
    """
    truth, _ = metrics.one_vs_rest(runs[0])
    return Curves(
        runs[0].kind,
        len(truth),
        truth.sum(axis=0),
        _ranked(runs),
        given=_risks(runs),
        scaled=_risks(scaling.platt_scaled(runs, validation)) if validation else None,
        fitted_on=len(validation[0].ids) if validation else 0,
    )


def probabilities(rows: Mapping[str, Curves]) -> tuple[dict[str, Risks], str]:
    """Returns by row what is nearest to probabilities, and how it came to be, in words: scaled scores if every row has
    them, and else the scores of all as they are."""
    fitted_on = min(of.fitted_on for of in rows.values())
    if all(of.scaled for of in rows.values()):
        return {row: of.scaled for row, of in rows.items()}, f"Platt-scaled on {fitted_on:,} validation notes"
    return {row: of.given for row, of in rows.items()}, GIVEN


def by_frequency(areas: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns `[strata, 3]`: geometric mean of the counts, mean area and number of the labels of each half decade of
    counts. A label that no note has is left out.

    Args:
      areas: `[labels]`. counts: how many notes have each label, `[labels]`.
    """
    areas, counts = areas[counts > 0], counts[counts > 0]
    of_label = np.floor(2 * np.log10(counts))
    strata = [of_label == stratum for stratum in np.unique(of_label)]
    found = [(np.exp(np.log(counts[here]).mean()), areas[here].mean(), here.sum()) for here in strata]
    return np.array(found).reshape(-1, 3)


def traced(logs: Sequence[Log], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the updates at which the logs of some runs have a value, and its mean over the runs, `[updates]` each."""
    points = [(line["step"], line[name]) for log in logs for line in log if name in line]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    updates, place = np.unique(steps, return_inverse=True)
    return updates, np.bincount(place, values) / np.bincount(place) if len(updates) else updates


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns the running mean over the last twentieth of the curve up to each point."""
    width = max(1, len(values) // _WINDOW)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _ranked(runs: Sequence[Predictions]) -> Ranked | None:
    truth, _ = metrics.one_vs_rest(runs[0])
    labels = metrics.scorable(truth)
    if not len(labels):
        return None
    sensitivity, precision = np.zeros_like(GRID), np.zeros_like(GRID)
    areas, times = np.zeros(len(labels)), len(labels) * len(runs)
    for run in runs:
        of_run, scores = metrics.one_vs_rest(run)  # the order of the notes is a run's own
        for number, column in enumerate(labels):
            false, true, _ = roc_curve(of_run[:, column], scores[:, column])
            sensitivity += np.interp(GRID, false, true) / times
            precision += _precision(of_run[:, column], scores[:, column]) / times
            areas[number] += np.trapezoid(true, false) / len(runs)
    return Ranked(sensitivity, precision, float(truth[:, labels].mean()), labels, areas)


def _precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the precision at the highest threshold that reaches each sensitivity of `GRID`, without interpolation:
    between two points of a precision-recall curve a straight line is out of reach (Davis and Goadrich 2006)."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    first = np.searchsorted(recall[::-1], np.maximum(GRID, np.finfo(float).eps))
    return precision[::-1][first]


def _risks(runs: Sequence[Predictions]) -> Risks:
    truth, chances = (np.concatenate(parts) for parts in zip(*map(calibration.pooled, runs), strict=True))
    bins = int(np.clip(len(truth) // len(runs) // _BIN, 2, calibration.BINS))
    curve = calibration.reliability(truth, chances, bins, by="mass")
    cases = -(-curve.counts // len(runs))
    pairs = zip(np.rint(curve.observed * cases).astype(int).tolist(), cases.tolist(), strict=True)
    ends = np.array([binomtest(*pair).proportion_ci(method="wilson") for pair in pairs])
    counts = np.histogram(chances, HISTOGRAM)[0]
    return Risks(curve, ends[:, 0], ends[:, 1], counts / counts.sum(), _decision(runs))


def _decision(runs: Sequence[Predictions]) -> utility.Decision | None:
    if runs[0].kind != "binary":
        return None
    each = [utility.decision_curve(*calibration.pooled(run)) for run in runs]
    return utility.Decision(each[0].thresholds, np.mean([of.model for of in each], axis=0), each[0].everyone)
