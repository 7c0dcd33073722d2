"""The loop over blocks of queries: which keys a block is given, and what `vmap`, scan and remat make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlora.models.attention_xla import attend_xla


def inputs(*shape, kv_heads=1, heads=2, dim=4):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(*shape, n, dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads, heads)]


def naive(q, k, v, segments, window=0):
    """One softmax a query, over the keys it may see."""
    out = np.zeros_like(q)
    for row, place, head in np.ndindex(q.shape[:3]):
        seen = (segments[row] == segments[row, place]) & (np.arange(q.shape[1]) <= place)
        seen[: max(0, place - window + 1) if window else 0] = False
        shared = head // (q.shape[2] // k.shape[2])
        scores = np.exp(k[row, seen, shared] @ q[row, place, head] * q.shape[-1] ** -0.5)
        out[row, place, head] = scores @ v[row, seen, shared] / scores.sum()
    return out


def gradients(attention):
    def of(q, k, v, segments, d_out):
        out, backward = jax.vjp(lambda *qkv: attention(*qkv, segments), q, k, v)
        return out, *backward(d_out)

    return of


def drawn(rng, rows, length):
    """Segments as a packer may number them: of any lengths, in any order of the numbers, the padding anywhere."""
    lengths = rng.integers(1, length // 2, (rows, length))
    order = np.stack([rng.permutation(length) for _ in range(rows)])
    return np.stack([np.repeat(o, n)[:length] for o, n in zip(order, lengths, strict=True)])


# Of one block, of four, of more blocks than widths, and none a multiple of the block.
@pytest.mark.parametrize("length, window", [(50, 0), (250, 0), (250, 70), (700, 0)])
def test_segments_of_any_order_equal_a_softmax_a_query(length, window):
    q, k, v, _ = inputs(2, length)
    segments = drawn(np.random.default_rng(length), 2, length)
    found = jax.jit(attend_xla, static_argnums=4)(q, k, v, segments, window)
    np.testing.assert_allclose(found, naive(q, k, v, segments, window), rtol=1e-5, atol=1e-5)


def test_a_packed_note_is_computed_as_it_is_alone():
    q, k, v, d_out = inputs(1, 256)
    together = jax.jit(gradients(attend_xla))(q, k, v, np.repeat([[1, 2]], [100, 156], axis=1), d_out)
    note = slice(100, 256)
    alone = jax.jit(gradients(attend_xla))(*(x[:, note] for x in (q, k, v)), np.ones((1, 156), int), d_out[:, note])
    for packed, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(packed[:, note], single, rtol=1e-5, atol=1e-6)


# Mapped over adapters: with segments of their own, and with the same.
@pytest.mark.parametrize("axis", [0, None])
def test_vmap_is_more_rows(axis):
    q, k, v, d_out = inputs(3, 2, 150)
    own = np.stack([drawn(np.random.default_rng(i), 2, 150) for i in range(3)])
    segments = own[0] if axis is None else own
    found = jax.jit(jax.vmap(gradients(attend_xla), (0, 0, 0, axis, 0)))(q, k, v, segments, d_out)
    one = jax.jit(gradients(attend_xla))
    for i in range(3):
        for mapped, single in zip(found, one(q[i], k[i], v[i], own[0 if axis is None else i], d_out[i]), strict=True):
            np.testing.assert_allclose(mapped[i], single, rtol=1e-5, atol=1e-6)


def test_a_scan_over_layers_stores_nothing_as_large_as_a_block_of_weights():
    q, k, v, d_out = inputs(1, 256)
    segments = np.ones((1, 256), int)

    def layers(q, k, v):
        return jax.lax.scan(lambda x, _: (attend_xla(x, k, v, segments), None), q, None, length=2)[0]

    saved = jax.tree.leaves(jax.eval_shape(lambda *qkv: jax.vjp(layers, *qkv)[1], q, k, v))
    assert saved and max(np.prod(leaf.shape) for leaf in saved) <= 2 * q.size


def test_large_scores_stay_finite_and_choose_one_key():
    q, k, v, d_out = inputs(1, 100)
    found = jax.jit(gradients(attend_xla))(1e4 * q, k, v, np.ones((1, 100), int), d_out)
    assert all(np.isfinite(x).all() for x in found)
    chosen = np.abs(np.asarray(found[0])[0, 50, 0] - v[0, :51, 0]).max(axis=-1).min()
    assert chosen < 1e-4


def test_a_gradient_through_remat_equals_that_without():
    q, k, v, d_out = inputs(1, 130)
    segments = jnp.asarray(drawn(np.random.default_rng(1), 1, 130))
    plain = jax.jit(gradients(attend_xla))(q, k, v, segments, d_out)
    again = jax.jit(gradients(jax.checkpoint(lambda *qkvs: attend_xla(*qkvs))))(q, k, v, segments, d_out)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
