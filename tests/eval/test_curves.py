"""The curves that the figures are drawn from, against scikit-learn, SciPy and a plain loop."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from jaxlora.eval import calibration, subgroups, utility
from jaxlora.eval.curves import GRID, by_frequency, of_row, probabilities, smoothed, traced
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.scaling import platt, straightened


def predicted(kind, seed=0, notes=400):
    truth, rng = np.random.default_rng(9), np.random.default_rng(seed)
    count = {"binary": 2, "multiclass": 4, "multilabel": 5}[kind]
    labels = truth.integers(0, count, notes)
    if kind == "multilabel":
        labels = (truth.random((notes, count)) < [0.3, 0.1, 0.02, 0.5, 0]).astype(np.uint8)
    hot = labels if kind == "multilabel" else np.eye(count)[labels]
    logits = (rng.normal(size=hot.shape) + hot).astype(np.float32)
    ids = np.array([f"{i:016x}" for i in range(notes)])
    return Predictions(kind, tuple(map(str, range(count))), ids, ids, labels, logits)


def scores(p):
    return p.logits[:, 1].astype(float) - p.logits[:, 0]


def test_a_binary_curve_is_the_mean_over_the_runs():
    runs = [predicted("binary", seed) for seed in (0, 1)]
    found = of_row(runs).ranked
    plain = [roc_curve(p.labels, scores(p))[:2] for p in runs]
    assert found.sensitivity == pytest.approx(np.mean([np.interp(GRID, *of) for of in plain], axis=0))
    assert found.areas == pytest.approx([np.mean([roc_auc_score(p.labels, scores(p)) for p in runs])])
    assert found.prevalence == pytest.approx(runs[0].labels.mean())


def test_the_order_of_a_runs_notes_is_its_own():
    one, other = (predicted("multilabel", seed) for seed in (0, 1))
    turned = subgroups.subset(other, np.arange(400)[::-1])
    for name in ("sensitivity", "precision", "areas"):
        assert getattr(of_row([one, turned]).ranked, name) == pytest.approx(getattr(of_row([one, other]).ranked, name))


def test_precision_is_what_a_threshold_reaches():
    p = predicted("binary")
    found = of_row([p]).ranked.precision
    for share, precision in zip(GRID[1:], found[1:], strict=True):
        threshold = np.sort(scores(p)[p.labels == 1])[::-1][int(np.ceil(share * p.labels.sum() - 1e-9)) - 1]
        assert precision == pytest.approx(p.labels[scores(p) >= threshold].mean())
    assert found[0] == p.labels[scores(p).argmax()]
    assert np.mean(found) == pytest.approx(average_precision_score(p.labels, scores(p)), abs=0.01)


def test_labels_without_both_classes_have_no_curve():
    p = predicted("multilabel")
    found = of_row([p])
    assert found.ranked.labels.tolist() == [0, 1, 2, 3] and found.positives.tolist() == p.labels.sum(axis=0).tolist()
    assert found.ranked.areas == pytest.approx(roc_auc_score(p.labels[:, :4], p.logits[:, :4], average=None))
    single = dataclasses.replace(predicted("binary"), labels=np.zeros(400, int))
    assert of_row([single]).ranked is None


def test_reliability_is_of_all_notes_together():
    runs = [predicted("binary", seed) for seed in (0, 1)]
    found = of_row(runs).given
    truth, chances = np.concatenate([p.labels for p in runs]), np.concatenate([expit(scores(p)) for p in runs])
    observed, predicted_ = calibration_curve(truth, chances, n_bins=10, strategy="quantile")
    assert found.reliability.observed == pytest.approx(observed)
    assert found.reliability.predicted == pytest.approx(predicted_)
    # As sure as one run's notes make it: 40 in each of ten bins, and not 80.
    ends = binomtest(round(40 * observed[3]), 40).proportion_ci(method="wilson")
    assert (found.low[3], found.high[3]) == pytest.approx(ends)
    assert found.histogram.sum() == pytest.approx(1) and len(found.histogram) == 40


@pytest.mark.parametrize("notes, bins", [(30, 2), (100, 5), (1000, 10)])
def test_a_bin_has_twenty_cases(notes, bins):
    assert len(of_row([predicted("binary", notes=notes)]).given.reliability.counts) == bins


def test_net_benefit_is_the_mean_over_the_runs():
    runs = [predicted("binary", seed) for seed in (0, 1)]
    found = of_row(runs).given.decision
    truth, chances = np.concatenate([p.labels for p in runs]), np.concatenate([expit(scores(p)) for p in runs])
    together = utility.decision_curve(truth, chances)
    assert found.model == pytest.approx(together.model) and found.everyone == pytest.approx(together.everyone)
    assert of_row([predicted("multiclass")]).given.decision is None


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_scaled_scores_are_of_each_runs_own_validation_notes(kind):
    runs, held_out = ([predicted(kind, seed) for seed in seeds] for seeds in ((0, 1), (2, 3)))
    found = of_row(runs, held_out)
    by_hand = [straightened(p, platt(v)) for p, v in zip(runs, held_out, strict=True)]
    assert found.scaled.reliability.predicted == pytest.approx(of_row(by_hand).given.reliability.predicted)
    assert found.fitted_on == 400 and of_row(runs).scaled is None


def test_scaling_mends_scores_that_are_too_high():
    p, held_out = (dataclasses.replace(of, logits=of.logits + [0, 2]) for of in map(predicted, ["binary"] * 2, [0, 1]))
    found = of_row([p], [held_out])
    assert calibration.ece(found.scaled.reliability) < calibration.ece(found.given.reliability) / 2


def test_probabilities_are_scaled_for_all_rows_or_for_none():
    p = predicted("binary")
    plain, fitted = of_row([p]), of_row([p], [predicted("binary", 1, 90)])
    found, how = probabilities({"a": fitted, "b": fitted})
    assert found["a"] is fitted.scaled and how == "Platt-scaled on 90 validation notes"
    found, how = probabilities({"a": fitted, "b": plain})
    assert found == {"a": fitted.given, "b": plain.given} and how == "scores as given"


def test_strata_are_half_decades():
    counts = np.array([0, 1, 3, 4, 9, 10, 31, 32, 400])
    areas = np.arange(9) / 10
    found = by_frequency(areas, counts)
    assert found[:, 2].tolist() == [2, 2, 2, 1, 1] and found[:, 2].sum() == (counts > 0).sum()
    assert found[1] == pytest.approx([np.sqrt(4 * 9), (0.3 + 0.4) / 2, 2])
    assert by_frequency(areas[:1], counts[:1]).shape == (0, 3)


def test_a_trace_is_the_mean_of_the_runs_that_have_a_point():
    logs = [
        [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0}, {"step": 2, "validation/perplexity": 9.0}],
        [{"step": 1, "loss": 2.0}],
    ]
    steps, values = traced(logs, "loss")
    assert steps.tolist() == [1, 2] and values.tolist() == [3, 2]
    steps, values = traced(logs, "absent")
    assert len(steps) == len(values) == 0


def test_smoothing_is_the_mean_of_the_last_twentieth():
    values = np.random.default_rng(0).normal(size=100)
    found = smoothed(values)
    assert found[0] == values[0] and found[60] == pytest.approx(values[56:61].mean())
    assert smoothed(values[:7]) == pytest.approx(values[:7])
