"""The language-model loss in chunks, and the classification head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from jaxlora.models.heads import ClassificationHead, next_token_nll

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(3, 12, 5)).astype(np.float32)
UNEMBEDDING = RNG.normal(size=(5, 9)).astype(np.float32)
TOKENS = RNG.integers(9, size=(3, 12))
SEGMENTS = np.asarray([[1] * 5 + [2] + [3] * 4 + [0] * 2, [0] * 3 + [1] * 9, [1] * 12])


@functools.partial(jax.jit, static_argnums=1)
def nll_and_gradient(hidden, chunk):
    def loss(hidden):
        nll, weights = next_token_nll(hidden, jnp.asarray(UNEMBEDDING), TOKENS, SEGMENTS, chunk)
        return nll.sum(), (nll, weights)

    (_, result), gradient = jax.value_and_grad(loss, has_aux=True)(hidden)
    return *result, gradient


@pytest.mark.parametrize("chunk", [12, 5, 4, 1])
def test_nll_and_its_gradient_are_those_of_the_whole_softmax(chunk):
    nll, weights, gradient = nll_and_gradient(HIDDEN, chunk)
    log = log_softmax(HIDDEN.astype(np.float64) @ UNEMBEDDING, axis=-1)
    following = np.roll(TOKENS, -1, axis=1)
    expected = -np.take_along_axis(log, following[..., None], axis=-1)[..., 0] * np.asarray(weights)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-6)
    error = (np.exp(log) - np.eye(9)[following]) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(gradient, error @ UNEMBEDDING.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [12, 4])
def test_weights_leave_out_the_end_of_each_segment_and_padding(chunk):
    nll, weights, _ = nll_and_gradient(HIDDEN, chunk)
    expected = [[1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0] + [1] * 8 + [0], [1] * 11 + [0]]
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_array_equal(np.asarray(nll) != 0, np.asarray(expected, bool))


def test_head_classifies_the_last_token_of_each_segment_on_any_layout():
    head = ClassificationHead(5, 3, rngs=nnx.Rngs(0))
    segments = np.asarray([[1] * 8 + [0] * 4, [0] * 7 + [1] * 5, [1] * 5 + [2] + [3] * 4 + [0] * 2])
    hidden = RNG.normal(size=(3, 12, 5)).astype(np.float32)
    logits = head(hidden, segments, 3)
    assert logits.shape == (3, 3, 3) and logits.dtype == jnp.float32
    kernel = np.asarray(head.kernel[...])
    for row, segment, last in [(0, 0, 7), (1, 0, 11), (2, 0, 4), (2, 1, 5), (2, 2, 9)]:
        np.testing.assert_allclose(logits[row, segment], hidden[row, last] @ kernel, rtol=1e-5, atol=1e-6)


def test_head_computes_in_float32_from_bfloat16():
    head = ClassificationHead(5, 3, rngs=nnx.Rngs(0))
    logits = head(jnp.asarray(HIDDEN, jnp.bfloat16), SEGMENTS, 3)
    assert logits.dtype == head.kernel[...].dtype == jnp.float32


def test_head_over_every_position_is_the_same_layer():
    head = ClassificationHead(5, 3, rngs=nnx.Rngs(0))
    every = head.every(HIDDEN)
    assert every.shape == (3, 12, 3) and every.dtype == jnp.float32
    np.testing.assert_allclose(every, HIDDEN @ np.asarray(head.kernel[...]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(every[0, 4], head(HIDDEN, SEGMENTS, 3)[0, 0])


def test_no_prediction_from_or_of_a_virtual_token_counts():
    tokens = TOKENS.copy()
    tokens[:, :2] = -1, -2
    hidden, unembedding = jnp.asarray(HIDDEN), jnp.asarray(UNEMBEDDING)
    nll, weights = next_token_nll(hidden, unembedding, jnp.asarray(tokens), SEGMENTS, 4)
    whole, counted = next_token_nll(hidden, unembedding, TOKENS, SEGMENTS, 4)
    assert not np.any(weights[:, :2]) and not np.any(nll[:, :2])
    np.testing.assert_array_equal(weights[:, 2:], counted[:, 2:])
    np.testing.assert_array_equal(nll[:, 2:], whole[:, 2:])
