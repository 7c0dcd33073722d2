"""Grouped-query attention over packed rows, against the dense attention of jax.nn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxlora.models.attention import attend, attend_cached

pytestmark = pytest.mark.usefixtures("quick_compiles")

HEADS, KV_HEADS, DIM = 4, 2, 8


def inputs(length: int):
    """q, k, v and the segments of two rows: three notes and padding behind, and a padded front and one note."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=(2, length, n, DIM)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    at = np.arange(length) / length
    segments = np.stack([np.digitize(at, [0.3, 0.55, 0.9]) + 1, np.where(at < 0.2, 0, 1)])
    return q, k, v, np.where(segments == 4, 0, segments)


def mask_of(segments, window=0):
    near = np.tril(np.ones(segments.shape[1:] * 2, bool))
    near = near & ~np.tril(near, -window) if window else near
    return near & (segments[:, :, None] == segments[:, None])


def dense(q, k, v, segments, d_out, window=0):
    """Softmax over the whole masked square and its gradients, in float64."""
    q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))
    group = HEADS // KV_HEADS
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.where(mask_of(segments, window)[:, None], np.einsum("bthd,bshd->bhts", q, k) * DIM**-0.5, -np.inf)
    weights = softmax(scores, axis=-1)
    d_weights = np.einsum("bthd,bshd->bhts", d_out, v)
    d_scores = weights * (d_weights - np.sum(weights * d_weights, axis=-1, keepdims=True)) * DIM**-0.5
    d_q, d_k = np.einsum("bhts,bshd->bthd", d_scores, k), np.einsum("bhts,bthd->bshd", d_scores, q)
    d_v = np.einsum("bhts,bthd->bshd", weights, d_out)
    d_k, d_v = (x.reshape(*x.shape[:2], KV_HEADS, group, DIM).sum(axis=3) for x in (d_k, d_v))
    return np.einsum("bhts,bshd->bthd", weights, v), (d_q, d_k, d_v)


def assert_close(found, wanted):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnames="window")
def value_and_gradients(q, k, v, segments, d_out, window=0):
    out, backward = jax.vjp(lambda *qkv: attend(*qkv, segments, window), q, k, v)
    return out, backward(d_out)


# One block, whole or not; two; four of more than 256.
@pytest.mark.parametrize("length", [256, 200, 300, 1100])
def test_equals_dense_attention_with_its_gradients(length):
    q, k, v, segments = inputs(length)
    d_out = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
    assert_close(value_and_gradients(q, k, v, segments, d_out), dense(q, k, v, segments, d_out))


# The window is within a block, a block, across blocks, and longer than the row.
@pytest.mark.parametrize("length, window", [(200, 1), (200, 16), (600, 256), (1100, 300), (200, 500)])
def test_a_sliding_window_equals_dense_attention_with_its_gradients(length, window):
    q, k, v, segments = inputs(length)
    d_out = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
    found = value_and_gradients(q, k, v, segments, d_out, window)
    assert_close(found, dense(q, k, v, segments, d_out, window))


def test_cached_attention_of_the_last_position_is_its_attention():
    q, k, v, _ = inputs(60)
    segments = np.ones((2, 60), np.int64)
    whole = value_and_gradients(q, k, v, segments, q)[0]
    visible = np.broadcast_to(np.arange(64) < 60, (2, 64))
    k, v = (np.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0)), constant_values=1e6) for x in (k, v))
    np.testing.assert_allclose(attend_cached(q[:, -1:], k, v, visible), whole[:, -1:], rtol=1e-4, atol=1e-5)


def test_equals_the_attention_of_jax_nn_with_its_automatic_gradients():
    q, k, v, segments = inputs(40)
    d_out = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)

    @jax.jit
    def automatic(*qkv):
        mask = mask_of(segments)[:, None]
        out, backward = jax.vjp(lambda *x: jax.nn.dot_product_attention(*x, mask=mask), *qkv)
        return out, backward(d_out)

    assert_close(value_and_gradients(q, k, v, segments, d_out), automatic(q, k, v))


def test_no_bit_leaks_across_segments_or_from_the_future():
    q, k, v, segments = inputs(200)
    before, second, last = np.asarray(value_and_gradients(q, k, v, segments, q)[0]), segments[0] == 2, 160
    k[0, second], v[0, second] = 30.0, -1e6  # another note
    k[0, last:], v[0, last:] = -30.0, 1e6  # the rest of the third note, and the padding
    after = np.asarray(value_and_gradients(q, k, v, segments, q)[0])
    same = ((segments[0] == 1) | (segments[0] == 3)) & (np.arange(200) < last)
    np.testing.assert_array_equal(after[0, same], before[0, same])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.all(after[0, second] != before[0, second])


def test_gradients_do_not_leak_across_segments():
    q, k, v, segments = inputs(200)
    d_out = np.broadcast_to((segments == 2)[..., None, None], q.shape).astype(np.float32)
    _, gradients = value_and_gradients(q, k, v, segments, d_out)
    for gradient in gradients:
        assert not np.any(gradient[segments != 2]) and np.any(gradient[segments == 2])


def test_padding_is_finite_with_its_gradients():
    q, k, v, _ = inputs(200)
    out, gradients = value_and_gradients(1e3 * q, k, v, np.zeros((2, 200), np.int64), q)
    assert all(np.all(np.isfinite(x)) for x in (out, *gradients))


def test_bfloat16_stays_bfloat16_and_close():
    q, k, v, segments = inputs(200)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out, gradients = value_and_gradients(*half, segments, half[0])
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype("bfloat16")}
    expected, _ = value_and_gradients(q, k, v, segments, q)
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.05)
