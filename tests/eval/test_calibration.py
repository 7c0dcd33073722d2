"""Calibration against scikit-learn and SciPy, and where neither has it against examples worked by hand."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from jaxlora.eval import calibration, scaling
from jaxlora.eval.predictions import Predictions


def drawn(kind, count, notes=600, overconfident=3.0, seed=0):
    """Predictions whose logits are `overconfident` times those that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(notes, count)) * 1.5 - 0.5
    ids = np.array([f"{i:016x}" for i in range(notes)])
    if kind == "multilabel":
        labels = (rng.random((notes, count)) < expit(logits)).astype(np.uint8)
    else:
        labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((notes, 1))).sum(axis=1)
    logits = (overconfident * logits).astype(np.float32)
    return Predictions(kind, tuple(map(str, range(count))), ids, ids, labels, logits)


@pytest.fixture(params=["plain", "tied", "extreme", "rare"])
def column(request):
    """0/1 truth and log-odds of 500 notes."""
    rng = np.random.default_rng(1)
    odds = rng.normal(size=500) * 2
    truth = rng.random(500) < expit(0.5 * odds - 0.3)
    if request.param == "tied":
        odds = np.round(odds)
    if request.param == "extreme":
        odds = 40 * odds
    if request.param == "rare":
        odds = odds - 5
        truth = rng.random(500) < expit(odds + 1.5)
    return truth.astype(int), odds


def test_brier_and_log_loss_are_scikit_learns(column):
    truth, odds = column
    chances = expit(odds)
    names = np.arange(len(truth)).astype(str)
    logits = np.stack([np.zeros(len(truth)), odds], axis=1)
    found = calibration.evaluate(Predictions("binary", ("no", "yes"), names, names, truth, logits))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(truth, chances))
    prevalence = np.full(len(truth), truth.mean())
    scaled = 1 - sk.brier_score_loss(truth, chances) / sk.brier_score_loss(truth, prevalence)
    assert found["brier_scaled"] == pytest.approx(scaled)
    if np.abs(odds).max() < 30:
        assert calibration.log_loss(truth, odds) == pytest.approx(sk.log_loss(truth, chances))
    else:  # where a probability is 1, scikit-learn cuts it off
        assert calibration.log_loss(truth, odds) == pytest.approx(
            np.mean(np.logaddexp(0, np.where(truth, -odds, odds)))
        )


def test_the_slope_is_that_of_a_logistic_regression(column):
    truth, odds = column
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(odds[:, None] / odds.std(), truth)
    intercept, slope = calibration.recalibration(truth, odds)
    assert slope == pytest.approx(oracle.coef_[0, 0] / odds.std(), rel=1e-4)
    best = minimize(
        lambda a: calibration.log_loss(truth, odds + a[0]), [intercept + 0.5], method="Nelder-Mead", tol=1e-10
    )
    assert intercept == pytest.approx(best.x[0], abs=1e-3)
    # Where the mean of the probabilities is the prevalence, nothing is too high or too low in the large.
    assert expit(odds + intercept).mean() == pytest.approx(truth.mean(), abs=1e-6)


def test_what_has_no_finite_slope():
    odds = np.linspace(-2, 2, 40)
    assert np.isnan(calibration.recalibration((odds > 0).astype(int), odds)[1])  # told apart without error
    assert np.isnan(calibration.recalibration(np.tile([0, 1], 20), np.full(40, 0.7))[1])  # one score
    assert np.isnan(calibration.recalibration(np.ones(40, int), odds)).all()  # one class
    assert calibration.recalibration(np.tile([0, 1], 20), np.full(40, 0.7))[0] == pytest.approx(-0.7)


@pytest.mark.parametrize("bins", [5, 10])
@pytest.mark.parametrize(("by", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_the_curve_is_scikit_learns(column, bins, by, strategy):
    truth, odds = column
    chances = expit(odds)
    curve = calibration.reliability(truth, chances, bins, by)
    observed, predicted = calibration_curve(truth, chances, n_bins=bins, strategy=strategy)
    np.testing.assert_allclose(curve.observed, observed)
    np.testing.assert_allclose(curve.predicted, predicted)
    assert curve.counts.sum() == len(truth) and len(curve.counts) == len(observed)


def test_the_expected_error_by_hand():
    """Three of four notes at 0.9 are positive (0.15 off), none of one at 0.25 (0.25 off)."""
    truth, chances = np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.9, 0.9, 0.9, 0.25])
    curve = calibration.reliability(truth, chances)
    assert curve.counts.tolist() == [1, 4]
    assert calibration.ece(curve) == pytest.approx((4 * 0.15 + 0.25) / 5)
    assert calibration.ece(curve, weighted=False) == pytest.approx((0.15 + 0.25) / 2)
    assert calibration.ece(calibration.reliability(np.array([0, 1]), np.array([0.0, 1.0]))) == 0


@pytest.mark.parametrize(("kind", "count"), [("binary", 2), ("multiclass", 4), ("multilabel", 5)])
def test_every_kind(kind, count):
    p = drawn(kind, count)
    found = calibration.evaluate(p)
    logits = p.logits.astype(np.float64)
    if kind == "multilabel":
        truth, chances = p.labels, expit(logits)
        briers = [sk.brier_score_loss(truth[:, c], chances[:, c]) for c in range(count)]
        assert found["brier"] == pytest.approx(np.mean(briers))
        losses = [sk.log_loss(truth[:, c], chances[:, c]) for c in range(count)]
        assert found["log_loss"] == pytest.approx(np.mean(losses)) and found["calibration_columns"] == count
    else:
        chances = softmax(logits, axis=1)
        onehot = np.eye(count)[p.labels]
        whole = ((chances - onehot) ** 2).sum(axis=1).mean()
        assert found["brier"] == pytest.approx(whole / 2 if kind == "binary" else whole)
        assert found["log_loss"] == pytest.approx(sk.log_loss(p.labels, chances))
        shares = onehot.mean(axis=0)
        assert found["brier_scaled"] == pytest.approx(1 - whole / ((onehot - shares) ** 2).sum(axis=1).mean())
        assert found["calibration_columns"] == (1 if kind == "binary" else count)
    if kind == "multiclass":
        top = calibration.reliability(chances.argmax(axis=1) == p.labels, chances.max(axis=1))
        assert found["ece"] == pytest.approx(calibration.ece(top)) and found["ece_classes"] > 0
    truth, odds = calibration.columns(p)
    np.testing.assert_allclose(expit(odds), chances[:, 1:] if kind == "binary" else chances, atol=1e-12)
    assert (
        found["calibration_slope"] < 0.6 and calibration.median_slope(p) == found["calibration_slope"]
    )  # three times too confident


def test_labels_of_one_class_are_not_fitted():
    p = drawn("multilabel", 3)
    labels = p.labels.copy()
    labels[:, 0], labels[:, 1] = 0, np.arange(600) < 9
    found = calibration.evaluate(dataclasses.replace(p, labels=labels))
    assert (
        found["calibration_columns"] == 1
        and np.isfinite([found["calibration_slope"], found["brier"], found["ece"]]).all()
    )
    alone = calibration.evaluate(dataclasses.replace(p, labels=np.zeros_like(labels)))
    assert np.isnan([alone["calibration_slope"], alone["calibration_intercept"], alone["brier_scaled"]]).all()


@pytest.mark.parametrize(("kind", "count"), [("binary", 2), ("multiclass", 4), ("multilabel", 5)])
def test_the_temperature_is_the_best_one(kind, count):
    validation = drawn(kind, count, seed=3)

    def loss(by):
        return calibration.evaluate(scaling.cooled(validation, by[0]))["log_loss"]

    best = minimize(loss, [2.0], method="Nelder-Mead").x[0]
    assert scaling.temperature(validation) == pytest.approx(best, rel=1e-3) and best > 2


def test_platt_is_a_logistic_regression_on_smoothed_targets():
    validation = drawn("binary", 2, notes=80)
    truth, odds = (x[:, 0] for x in calibration.columns(validation))
    up, down = (truth.sum() + 1) / (truth.sum() + 2), 1 / (len(truth) - truth.sum() + 2)
    target = np.where(truth, up, down)
    twice = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        np.tile(odds, 2)[:, None], np.repeat([1, 0], len(odds)), sample_weight=np.concatenate([target, 1 - target])
    )
    expected = [twice.intercept_[0], twice.coef_[0, 0]]
    np.testing.assert_allclose(scaling.platt(validation)[0], expected, rtol=1e-3)


@pytest.mark.parametrize(("kind", "count"), [("binary", 2), ("multiclass", 4), ("multilabel", 5)])
def test_scaling_on_validation_mends_the_test_notes(kind, count):
    validation, test = drawn(kind, count, 2000, seed=4), drawn(kind, count, 2000, seed=5)
    raw, found = calibration.evaluate(test), scaling.evaluate(test, validation)
    assert found["temperature"] == pytest.approx(3, rel=0.15)
    for name in ("temperature", "platt"):
        assert found[f"ece_{name}"] < 0.05 < raw["ece"] and found[f"log_loss_{name}"] < raw["log_loss"]
        assert found[f"calibration_slope_{name}"] == pytest.approx(1, abs=0.15)
        assert abs(found[f"calibration_intercept_{name}"]) < 0.2


def test_platt_leaves_alone_what_it_cannot_fit():
    validation = drawn("multilabel", 3)
    labels, logits = validation.labels.copy(), validation.logits.copy()
    labels[:, 0], logits[:, 1] = 0, 2.0
    lines = scaling.platt(dataclasses.replace(validation, labels=labels, logits=logits))
    assert lines[:2].tolist() == [[0, 1], [0, 1]] and 0 < lines[2, 1] < 0.6
    perfect = dataclasses.replace(drawn("binary", 2), logits=np.eye(2, dtype=np.float32)[drawn("binary", 2).labels])
    assert np.isfinite(scaling.platt(perfect)).all()
