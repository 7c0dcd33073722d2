"""How sure a metric is: bootstrap intervals over patients, paired comparisons of runs, several seeds.

Notes of one patient are alike, so patients are drawn and not notes. A patient is drawn as often wherever it occurs: the
replicates of two runs, of several seeds and of tasks that share patients are of the same draws, and what they differ by
is then not which patients were drawn.

A positive drawn twice is ranked beside itself. To AUROC that is nothing, but the replicates of average precision lie
above its value, where labels are rare even all of them, and their percentiles are then no interval of it. So replicates
are moved until their mean is the sample's value: an interval of what test sets of this size give on average.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxlora.errors import UserError
from jaxlora.eval.delong import delong
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.statistics import Statistic, statistic
from jaxlora.eval.weights import Weights, drawn, left_out, unit

LEVEL = 0.95  # of every interval
KINDS = ("centred", "percentile", "bca")


class Interval(NamedTuple):
    """The ends of a 95 % interval; NaN where no replicate has a value."""

    low: float
    high: float


class Comparison(NamedTuple):
    """One run's metric less the other's, its 95 % interval, and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    p: float


class Sampled(NamedTuple):
    """A metric by its name, its value in the sample, and in every draw of the patients, `[resamples]`."""

    name: str
    value: float
    draws: np.ndarray


class Seeds(NamedTuple):
    """The same row trained with several seeds: the mean of a metric and its standard deviation over the seeds (NaN of
    one), and apart from it the 95 % interval of that mean over patients, its sampling error."""

    mean: float
    sd: float
    low: float
    high: float
    runs: int


def intervals(
    predictions: Predictions,
    names: Iterable[str],
    resamples: int = 2000,
    seed: int = 0,
    kind: str = "centred",
    thresholds: np.ndarray | None = None,
) -> dict[str, Interval]:
    """Returns the bootstrap interval over patients of each metric.

    Args:
      names, thresholds: as in `statistics.statistic`.
      kind: "centred", the percentiles of the replicates moved to the sample's value; "percentile", as they are; or
        "bca", bias-corrected and accelerated (Efron 1987), with the jackknife over patients, NaN where all replicates
        are on one side of the value, since there is then nothing to correct by.

    Raises:
      UserError: no such kind, or what `statistic` raises.
    """
    if kind not in KINDS:
        raise UserError(f"intervals: no kind {kind}; choose one of {', '.join(KINDS)}")
    names, p = list(names), predictions
    of = statistic(p, names, thresholds)

    def values(replicates: Iterable[Weights]) -> np.ndarray:
        return _values(of, names, replicates)

    samples = values(drawn(p.patients, resamples, seed))
    if kind == "percentile":
        return {name: _percentile(sample) for name, sample in zip(names, samples, strict=True)}
    point = values([unit(len(p.ids))])[:, 0]
    if kind == "centred":
        each = zip(names, samples, point, strict=True)
        return {name: _within(name, _percentile(_centred(sample, value))) for name, sample, value in each}
    without = values(left_out(p.patients))
    return {name: _bca(*each) for name, *each in zip(names, samples, point, without, strict=True)}


def sampled(predictions: Predictions, name: str, resamples: int = 2000, seed: int = 0) -> Sampled:
    """Returns a metric of a run with its bootstrap replicates.

    Raises:
      UserError: what `statistic` raises.
    """
    of, p = statistic(predictions, [name]), predictions
    point = float(_values(of, [name], [unit(len(p.ids))])[0, 0])
    return Sampled(name, point, _values(of, [name], drawn(p.patients, resamples, seed))[0])


def average(parts: Sequence[Sampled]) -> Sampled:
    """Returns the mean of some metrics, such as those of several seeds or of the tasks of a table.

    In each draw it is the mean of what they are in that draw: patients whom they share are drawn for all at once.
    """
    value = float(np.mean([part.value for part in parts]))
    return Sampled(parts[0].name, value, np.mean([part.draws for part in parts], axis=0))


def interval(of: Sampled) -> Interval:
    """Returns the 95 % interval of a metric or of an average, from its centred replicates."""
    return _within(of.name, _percentile(_centred(of.draws, of.value)))


def difference(one: Sampled, other: Sampled) -> Comparison:
    """Returns one metric less another of the same patients, over the same draws.

    p is the normal one of the difference over the standard deviation of its draws. Their share beyond zero is never
    less than one of them, from which a correction for a hundred comparisons leaves nothing to be found.
    """
    value = one.value - other.value
    draws = _centred(one.draws - other.draws, value)
    if not len(draws):
        return Comparison(value, np.nan, np.nan, np.nan)
    sd = draws.std()
    p = 2 * stats.norm.sf(abs(value) / sd) if sd else float(value == 0)
    return Comparison(value, *_percentile(draws), float(p))


def compare(one: Predictions, other: Predictions, name: str, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compares a metric of two runs on the same notes, as `difference` does.

    Raises:
      UserError: the runs have other notes, patients, labels or truth, or what `statistic` raises.
    """
    check_same(one, other)
    return difference(*(sampled(run, name, resamples, seed) for run in (one, other)))


def over_seeds(runs: Sequence[Predictions], name: str, resamples: int = 2000, seed: int = 0) -> Seeds:
    """Returns a metric of the runs of one row with several seeds: how it differs between seeds, and its sampling error.

    Raises:
      UserError: as in `compare`.
    """
    for run in runs[1:]:
        check_same(runs[0], run)
    parts = [sampled(run, name, resamples, seed) for run in runs]
    mean = average(parts)
    sd = float(np.std([part.value for part in parts], ddof=1)) if len(runs) > 1 else float("nan")
    return Seeds(mean.value, sd, *interval(mean), len(runs))


def check_same(one: Predictions, other: Predictions) -> None:
    """Checks that two runs have predicted the same notes, in whatever order.

    Raises:
      UserError: they are of other kinds, labels, notes, patients or truth.
    """
    remedy = "compare runs evaluated on one split of one prepared dataset"
    orders = [np.argsort(p.ids, kind="stable") for p in (one, other)]
    for what, values in (
        ("kinds", (one.kind, other.kind)),
        ("labels", (one.names, other.names)),
        ("notes", [p.ids[order] for p, order in zip((one, other), orders, strict=True)]),
        ("patients", [p.patients[order] for p, order in zip((one, other), orders, strict=True)]),
        ("true labels", [_truth(p, order) for p, order in zip((one, other), orders, strict=True)]),
    ):
        if not np.array_equal(*values):
            raise UserError(f"predictions: the two runs have other {what}; {remedy}")


def delong_interval(truth: np.ndarray, scores: np.ndarray) -> Interval:
    """Returns the normal interval of a binary AUROC by `delong`, within 0 and 1, for independent notes; NaN where there
    is no variance.

    Args:
      truth: 0/1 `[notes]`. scores: `[notes]`.
    """
    area, variance = delong(truth, scores)
    margin = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    return Interval(float(np.clip(area - margin, 0, 1)), float(np.clip(area + margin, 0, 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values of a family of tests after Holm (1979), in the order given: calling those below a level
    significant errs anywhere in the family with at most that probability."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def _values(of: Statistic, names: Sequence[str], replicates: Iterable[Weights]) -> np.ndarray:
    """Returns the values of some metrics, `[metrics, replicates]`."""
    found = [of(weights) for weights in replicates]
    return np.stack([np.concatenate([block[name] for block in found]) for name in names])


def _truth(p: Predictions, order: np.ndarray) -> np.ndarray:
    """Returns what the notes' predictions are measured against, in the given order of the notes."""
    if p.kind == "lm":
        return p.tokens[order]
    if p.kind != "tokens":
        return p.labels[order]
    place = np.argsort(order)
    return np.array(sorted([int(place[note]), *rest] for note, *rest in p.truth.tolist()))


def _centred(sample: np.ndarray, point: float) -> np.ndarray:
    """Returns the replicates that have a value, moved so that their mean is `point`."""
    finite = sample[np.isfinite(sample)]
    return finite + (point - finite.mean()) if len(finite) else finite


def _within(name: str, interval: Interval) -> Interval:
    """Returns the part of an interval in which the metric can lie: centring may move it beyond."""
    most = np.inf if name.endswith(("perplexity", "log_loss", "brier")) else 1.0
    return Interval(*(float(np.clip(end, 0.0, most)) for end in interval))


def _percentile(sample: np.ndarray) -> Interval:
    """Returns the interval between the percentiles of the replicates that have a value."""
    return _between(sample, (1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _bca(sample: np.ndarray, point: float, without: np.ndarray) -> Interval:
    """Returns the bias-corrected and accelerated interval (Efron 1987, equations 6.2 to 6.8).

    Args:
      sample: of the replicates. point: of the sample itself. without: of the sample without each patient.
    """
    finite, without = sample[np.isfinite(sample)], without[np.isfinite(without)]
    if not len(finite) or np.ptp(finite) == 0:
        return _percentile(sample)
    deviations = without.mean() - without
    spread = (deviations**2).sum() ** 1.5
    acceleration = (deviations**3).sum() / (6 * spread) if spread else 0.0
    # Of a replicate that equals the point, half is below.
    below = (np.count_nonzero(finite < point) + np.count_nonzero(finite <= point)) / (2 * len(finite))
    bias, normal = stats.norm.ppf(below), stats.norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if not np.isfinite(bias):
        return Interval(np.nan, np.nan)
    return _between(finite, *stats.norm.cdf(bias + (bias + normal) / (1 - acceleration * (bias + normal))))


def _between(sample: np.ndarray, low: float, high: float) -> Interval:
    finite = sample[np.isfinite(sample)]
    return Interval(*map(float, np.quantile(finite, [low, high]))) if len(finite) else Interval(np.nan, np.nan)
