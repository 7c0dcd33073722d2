"""The losses, by hand; the model is replaced by its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from jaxlora.train.objective import Objective, balanced_weights

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 4)).astype(np.float32)
NOTES = np.asarray([[4, 1, 0], [2, 0, 0]])
LABELS = np.asarray([[3, 0, 0], [2, 0, 0]])
PRESENT = [(0, 0), (0, 1), (1, 0)]
ROWS = {name: np.zeros((2, 8), np.int32) for name in ("tokens", "segments", "positions")}


class Head:
    """Gives the same logits to every note and to every position."""

    def __init__(self, logits):
        self.every = lambda *_: logits

    def __call__(self, *_):
        return self.every()


class Known:
    """A model whose hidden states and logits are given."""

    def __init__(self, hidden=None, logits=None, unembedding=None):
        self.hidden, self.head = hidden, Head(logits)
        self.unembedding = lambda: unembedding

    def __call__(self, *_):
        return self.hidden

    def pooled(self, *_):
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


POSITIONS = RNG.normal(size=(2, 8, 5)).astype(np.float32)
TAGS = np.asarray([[-1, 0, 4, 2, -1, 1, 0, -1], [-1, 3, -1, -1, -1, -1, -1, -1]])
SEGMENTS = np.asarray([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
ENDS = np.asarray([[[1, 3], [4, 4], [-1, -1]], [[0, 1], [-1, -1], [-1, -1]]])


def value_and_gradient(kind, logits, labels, segments=SEGMENTS):
    batch = {**ROWS, "segments": segments, "notes": NOTES, "labels": labels}
    run = jax.jit(lambda logits, batch: Objective(kind, ()).loss(Known(logits=logits), batch))
    value, gradient = jax.value_and_grad(run)(logits, batch)
    return float(value), np.asarray(gradient)


def test_tags_are_scored_over_the_tokens_that_have_one():
    log = log_softmax(POSITIONS.astype(np.float64), axis=-1)
    expected = -np.mean([log[row, at, TAGS[row, at]] for row, at in zip(*np.nonzero(TAGS >= 0), strict=True)])
    value, gradient = value_and_gradient("tokens", POSITIONS, TAGS)
    assert value == pytest.approx(expected, rel=1e-5)
    assert ((gradient != 0).any(axis=-1) == (TAGS >= 0)).all()


def test_what_padding_and_bos_say_changes_nothing():
    other = np.where(TAGS[..., None] < 0, 9 * RNG.normal(size=POSITIONS.shape), POSITIONS).astype(np.float32)
    assert value_and_gradient("tokens", other, TAGS)[0] == value_and_gradient("tokens", POSITIONS, TAGS)[0]


def test_the_ends_of_an_answer_are_scored_within_their_segment():
    logits, losses = POSITIONS[..., :2], []
    for row, segment in PRESENT:
        (inside,) = np.nonzero(SEGMENTS[row] == segment + 1)
        log = log_softmax(logits[row, inside].astype(np.float64), axis=0)
        losses += [-log[inside.tolist().index(ENDS[row, segment, end]), end] for end in (0, 1)]
    value, gradient = value_and_gradient("span", logits, ENDS)
    assert value == pytest.approx(np.mean(losses), rel=1e-5)
    assert ((gradient != 0).all(axis=-1) == (SEGMENTS > 0)).all() and np.isfinite(gradient).all()


def test_absent_segments_and_padding_have_no_ends():
    other, labels = POSITIONS[..., :2].copy(), ENDS.copy()
    other[SEGMENTS == 0], labels[NOTES == 0] = 50, 5
    assert value_and_gradient("span", other, labels)[0] == value_and_gradient("span", POSITIONS[..., :2], ENDS)[0]


@pytest.mark.parametrize(("kind", "labels"), [("tokens", 0 * TAGS - 1), ("span", 0 * ENDS - 1)])
def test_batch_without_a_label_costs_nothing(kind, labels):
    batch = {**ROWS, "notes": 0 * NOTES, "labels": labels}
    run = jax.value_and_grad(lambda logits: Objective(kind, ()).loss(Known(logits=logits), batch))
    value, gradient = jax.jit(run)(POSITIONS[..., :2])
    assert float(value) == 0 and not np.asarray(gradient).any()
