"""Metrics as functions of weights: with weights of one `metrics.evaluate`, else those of the notes drawn."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxlora.eval import metrics, thresholds
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.statistics import statistic
from jaxlora.eval.weights import Drawn, left_out, unit

NOTES = 80
COUNTS = ("n", "tokens", "entities", "labels_scored", "labels_skipped")
TRAINING = np.array([3, 40, 400, 4000, 40])


def made(kind, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([f"{number:016x}" for number in range(NOTES)])
    patients = ids[rng.integers(NOTES // 2, size=NOTES)]
    if kind == "lm":
        nll, base_nll, tokens = rng.gamma(5, size=(3, NOTES)).astype(np.float32)
        return Predictions("lm", (), ids, patients, nll=nll, base_nll=base_nll, tokens=np.ceil(tokens * 3))
    if kind == "span":
        scores = np.sort(rng.integers(3, size=(NOTES, 2)) / 2, axis=1).astype(np.float32)
        labels = rng.integers(2, size=NOTES)
        return Predictions("span", (), ids, patients, labels, scores=scores)
    if kind == "tokens":
        truth = np.stack([rng.integers(x, size=150) for x in (NOTES, 20, 1, 2)], axis=1)
        truth[:, 2] = truth[:, 1] + rng.integers(1, 6, size=150)
        found = np.concatenate([truth[:70], truth[70:110] + [0, 1, 1, 0], truth[110:130] + [0, 30, 30, 0]])
        names = ("O", "B-drug", "I-drug", "B-dose", "I-dose")
        return Predictions("tokens", names, ids, patients, np.ones(3), chosen=np.ones(3), found=found, truth=truth)
    if kind == "multilabel":
        labels = (rng.random((NOTES, 5)) < [0.5, 0.03, 0.3, 0, 1]).astype(np.uint8)
        labels[0, 1] = 1
        logits = np.round(rng.normal(size=(NOTES, 5)) + labels - 0.5, 1)
    else:
        count = 2 if kind == "binary" else 4
        labels = rng.choice(count, NOTES, p=[0.7, 0.3] if count == 2 else [0.5, 0.3, 0.17, 0.03])
        logits = rng.normal(size=(NOTES, count)) + np.eye(count)[labels]
    names, logits = tuple(map(str, range(logits.shape[1]))), logits.astype(np.float32)
    counts = {"train_positives": TRAINING} if kind == "multilabel" else {}
    return Predictions(kind, names, ids, patients, labels, logits, **counts)


def repeated(p, weights):
    """The predictions with each note as often as it weighs."""
    order = np.repeat(np.arange(NOTES), weights.astype(int))
    arrays = {f.name: getattr(p, f.name) for f in dataclasses.fields(p)[2:]}
    arrays = {name: x[order] for name, x in arrays.items() if isinstance(x, np.ndarray) and len(x) == NOTES}
    if p.kind == "tokens":
        for side in ("found", "truth"):
            rows = getattr(p, side)
            arrays[side] = np.array([[n, *row[1:]] for row in rows for n in np.flatnonzero(order == row[0])])
    return dataclasses.replace(p, **arrays)


def resampled(p):
    """What `evaluate` gives and can be resampled."""
    values = metrics.evaluate(p)
    dropped = {*COUNTS, *(f"labels_{name}" for name in metrics.STRATA), *(["accuracy"] if p.kind == "tokens" else [])}
    return {name: value for name, value in values.items() if name not in dropped}


@pytest.mark.parametrize("kind", ["lm", "binary", "multiclass", "multilabel", "tokens", "span"])
def test_equals_evaluate_of_the_notes_drawn(kind):
    p, rng = made(kind), np.random.default_rng(1)
    weights = np.concatenate([np.ones((NOTES, 1)), rng.poisson(1, (NOTES, 12))], axis=1).astype(np.float32)
    of = statistic(p, resampled(p))
    found = of(Drawn(weights))
    assert found.keys() == resampled(p).keys()
    for number in range(weights.shape[1]):
        wanted = resampled(repeated(p, weights[:, number]))
        for name, value in wanted.items():
            assert found[name][number] == pytest.approx(value, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "tokens", "span"])
def test_without_a_patient(kind):
    p = made(kind)
    found = statistic(p, resampled(p))(next(left_out(p.patients)))
    for number, patient in enumerate(np.unique(p.patients)):
        wanted = resampled(repeated(p, (p.patients != patient).astype(int)))
        for name, value in wanted.items():
            assert found[name][number] == pytest.approx(value, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_brier_and_log_loss(kind):
    p = made(kind)
    found = statistic(p, ["brier", "log_loss"])(unit(NOTES))
    if kind == "multilabel":
        truth, probabilities = p.labels, 1 / (1 + np.exp(-p.logits.astype(np.float64)))
        columns = [(truth[:, c], probabilities[:, c]) for c in range(5)]
        brier = np.mean([sk.brier_score_loss(t, q, pos_label=1) for t, q in columns])
        loss = np.mean([sk.log_loss(t, q, labels=[0, 1]) for t, q in columns])
    else:
        probabilities = metrics.softmax(p.logits)
        given = probabilities[:, 1] if kind == "binary" else probabilities
        brier, loss = sk.brier_score_loss(p.labels, given), sk.log_loss(p.labels, given)
    assert found["brier"][0] == pytest.approx(brier, abs=1e-12)
    assert found["log_loss"][0] == pytest.approx(loss, abs=1e-12)


def test_at_thresholds_of_another_split():
    p, validation = made("multilabel"), made("multilabel", seed=1)
    chosen = thresholds.choose(validation)
    weights = np.random.default_rng(2).poisson(1, (NOTES, 6)).astype(np.float32)
    found = statistic(p, thresholds.RATES, chosen)(Drawn(weights))
    for number in range(6):
        wanted = thresholds.evaluate(validation, repeated(p, weights[:, number]))
        assert {name: value[number] for name, value in found.items()} == pytest.approx(wanted, nan_ok=True)
