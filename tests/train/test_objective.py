"""The losses, by hand; the model is replaced by its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from jaxlora.train.objective import Objective, balanced_weights

pytestmark = pytest.mark.usefixtures("quick_compiles")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 4)).astype(np.float32)
NOTES = np.asarray([[4, 1, 0], [2, 0, 0]])
LABELS = np.asarray([[3, 0, 0], [2, 0, 0]])
PRESENT = [(0, 0), (0, 1), (1, 0)]
ROWS = {name: np.zeros((2, 8), np.int32) for name in ("tokens", "segments", "positions")}


class Known:
    """A model whose hidden states and logits are given."""

    def __init__(self, hidden=None, logits=None, unembedding=None):
        self.hidden, self.head = hidden, lambda *_: logits
        self.unembedding = lambda: unembedding

    def __call__(self, *_):
        return self.hidden


def loss(kind, logits, labels, **settings):
    batch = {**ROWS, "notes": NOTES, "labels": labels}
    run = jax.jit(lambda logits, batch: Objective(kind, (), **settings).loss(Known(logits=logits), batch))
    return float(run(logits, batch))


def entropies():
    return np.asarray([-log_softmax(LOGITS[at].astype(np.float64))[LABELS[at]] for at in PRESENT])


@pytest.mark.parametrize("kind", ["multiclass", "binary"])
def test_cross_entropy_is_the_mean_over_notes(kind):
    assert loss(kind, LOGITS, LABELS) == pytest.approx(entropies().mean(), rel=1e-5)


def test_weighted_cross_entropy_divides_by_the_sum_of_weights():
    weights = np.asarray([0.5, 1.0, 3.0, 7.0])
    w = np.asarray([weights[LABELS[at]] for at in PRESENT])
    expected = (w * entropies()).sum() / w.sum()
    assert loss("multiclass", LOGITS, LABELS, class_weights=tuple(weights)) == pytest.approx(expected, rel=1e-5)


def test_multilabel_is_the_mean_over_notes_and_labels():
    hot = RNG.integers(2, size=LOGITS.shape).astype(np.float32)
    p = expit(LOGITS.astype(np.float64))
    expected = np.mean([-(hot * np.log(p) + (1 - hot) * np.log(1 - p))[at] for at in PRESENT])
    assert loss("multilabel", LOGITS, hot) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_absent_notes_do_not_count(kind):
    labels = LABELS if kind == "multiclass" else np.eye(4, dtype=np.float32)[LABELS]
    other, other_labels = LOGITS + 9 * (NOTES == 0)[..., None] * RNG.normal(size=4), labels.copy()
    other_labels[NOTES == 0] = 1
    weights = {"class_weights": (1.0, 2.0, 3.0, 4.0)} if kind == "multiclass" else {}
    assert loss(kind, LOGITS, labels, **weights) == loss(kind, other, other_labels, **weights)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "lm"])
def test_batch_without_a_note_costs_nothing(kind):
    labels = LABELS if kind == "multiclass" else np.zeros(LOGITS.shape, np.float32)
    batch = {**ROWS, "notes": 0 * NOTES, "labels": labels}
    known = Known(np.ones((2, 8, 4), np.float32), LOGITS, np.ones((4, 9), np.float32))
    assert float(jax.jit(lambda batch: Objective(kind, ()).loss(known, batch))(batch)) == 0.0


@pytest.mark.parametrize("chunk", [4, 512])
def test_perplexity_counts_each_predicted_token_once(chunk):
    """The first token of a note is never a target, and its last predicts nothing."""
    hidden, unembedding = RNG.normal(size=(2, 8, 4)), RNG.normal(size=(4, 9))
    tokens = RNG.integers(9, size=(2, 8))
    segments = np.asarray([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
    log = log_softmax(hidden @ unembedding, axis=-1)
    predicted = [(0, 0), (0, 1), (0, 3), (0, 4), (0, 5), (1, 0)]
    expected = [-log[row, at, tokens[row, at + 1]] for row, at in predicted]

    known = Known(jnp.asarray(hidden, jnp.float32), unembedding=jnp.asarray(unembedding, jnp.float32))
    batch = {**ROWS, "tokens": tokens, "segments": segments}
    objective = Objective("lm", (), loss_chunk=chunk)
    nll, weights = jax.jit(lambda batch: objective.token_nll(known, batch))(batch)
    assert float(weights.sum()) == len(expected)
    assert float(nll.sum()) == pytest.approx(np.sum(expected), rel=1e-5)
    loss = jax.jit(lambda batch: objective.loss(known, batch))(batch)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_balanced_weights_are_n_over_k_times_count():
    assert balanced_weights(np.asarray([0, 0, 0, 1, 2, 2]), 3) == pytest.approx((6 / 9, 6 / 3, 6 / 6))
    weights = np.asarray(balanced_weights(labels := RNG.integers(5, size=100), 5))
    assert weights[labels].mean() == pytest.approx(1.0)


def test_class_absent_from_training_weighs_nothing():
    assert balanced_weights(np.asarray([0, 2, 2, 2]), 4) == pytest.approx((1.0, 0.0, 1 / 3, 0.0))
