"""Thresholds against trying each of them, and the rates at them against scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxlora.errors import UserError
from jaxlora.eval import metrics, thresholds
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.weights import unit

SCORES = {
    "f1": lambda truth, chosen: sk.f1_score(truth, chosen),
    "macro_f1": lambda truth, chosen: sk.f1_score(truth, chosen, average="macro"),
    "youden": lambda truth, chosen: sk.recall_score(truth, chosen) + sk.recall_score(truth, chosen, pos_label=0),
}


def made(kind, seed, notes=120):
    rng = np.random.default_rng(seed)
    ids = np.array([f"{number:016x}" for number in range(notes)])
    if kind == "multilabel":
        labels = (rng.random((notes, 4)) < [0.5, 0.1, 0.3, 0]).astype(np.uint8)
        logits = np.round(rng.normal(size=(notes, 4)) * 2 + labels * 2 - 3, 1)
    else:
        labels = (rng.random(notes) < 0.2).astype(np.int64)
        logits = rng.normal(size=(notes, 2)) + np.eye(2)[labels] * 1.5
    names = tuple(map(str, range(logits.shape[1])))
    return Predictions(kind, names, ids, ids, labels, logits.astype(np.float32))


@pytest.mark.parametrize("rule", thresholds.RULES)
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_no_threshold_is_better(rule, kind):
    p = made(kind, 0)
    truth, scores = metrics.one_vs_rest(p)
    found = thresholds.choose(p, rule)
    for label in metrics.scorable(truth):
        column, true = scores[:, label], truth[:, label]
        best = max(SCORES[rule](true, column >= cut) for cut in np.unique(column))
        assert SCORES[rule](true, column >= found[label]) == pytest.approx(best, abs=1e-12)
        higher = np.unique(column)[np.unique(column) > found[label]]
        assert all(SCORES[rule](true, column >= cut) < best - 1e-12 for cut in higher)
    if kind == "multilabel":
        assert found[3] == 0  # never positive: as without a choice


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_rates_are_scikit_learns(kind):
    validation, test = made(kind, 0), made(kind, 1)
    found = thresholds.evaluate(validation, test, "youden")
    truth, scores = metrics.one_vs_rest(test)
    chosen = (scores >= thresholds.choose(validation, "youden")).astype(int)
    columns = [(truth[:, c], chosen[:, c]) for c in metrics.scorable(truth)]
    wanted = {
        "f1_at": np.mean([sk.f1_score(*pair) for pair in columns]),
        "sensitivity": np.mean([sk.recall_score(*pair) for pair in columns]),
        "specificity": np.mean([sk.recall_score(*pair, pos_label=0) for pair in columns]),
        "ppv": np.mean([sk.precision_score(*pair) for pair in columns]),
        "npv": np.mean([sk.precision_score(*pair, pos_label=0) for pair in columns]),
        "f1_micro_at": sk.f1_score(truth.ravel(), chosen.ravel()),
    }
    assert found == pytest.approx(wanted)


def test_a_threshold_that_nothing_reaches_has_no_ppv():
    p = made("binary", 0)
    found = thresholds.at(p, np.array([2.0]))
    values = {name: value[0] for name, value in found(unit(120)).items()}
    assert np.isnan(values["ppv"])
    assert (values["sensitivity"], values["specificity"], values["f1_at"], values["f1_micro_at"]) == (0, 1, 0, 0)


def test_mistakes():
    p = made("binary", 0)
    with pytest.raises(UserError, match="^thresholds: no rule best; choose one of f1, macro_f1, youden$"):
        thresholds.choose(p, "best")
    with pytest.raises(UserError, match="^thresholds: the two predictions have other labels; evaluate one run on both"):
        thresholds.evaluate(made("multilabel", 0), p)
    language = Predictions("lm", (), p.ids, p.ids)
    with pytest.raises(UserError, match="^thresholds: lm predictions have none; take a task of whole notes$"):
        thresholds.choose(language)
