"""Grouped-query attention: over packed rows, and of one new token over a cache."""

import functools

import jax
import jax.numpy as jnp

_MASKED = -1e30


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int = 0) -> jax.Array:
    """Causal attention that never crosses a segment.

    Args:
      q: `[batch, length, heads, head_dim]`.
      k, v: `[batch, length, kv_heads, head_dim]`; heads is a multiple of kv_heads.
      segments: `[batch, length]`, the number of the packed note a position belongs to; 0 is padding.
      window: how many positions a position sees, itself included; 0 is all.

    Returns:
      `[batch, length, heads, head_dim]`. A padding position attends to padding: finite, and never read.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    # [batch, kv_heads, group, length, head_dim] and [batch, kv_heads, length, head_dim]
    q = (q * head_dim**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    out = _attend(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), segments, window)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of one new position a row over the cached ones.

    Args:
      q: `[batch, 1, heads, head_dim]`.
      k, v: `[batch, slots, kv_heads, head_dim]`, the new position's own among them.
      visible: bool `[batch, slots]`, at least one true in a row.

    Returns:
      `[batch, 1, heads, head_dim]`.
    """
    batch, _, heads, head_dim = q.shape
    q = (q * head_dim**-0.5).reshape(batch, k.shape[2], -1, head_dim)
    scores = jnp.einsum("BKGD,BSKD->BKGS", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1)
    return jnp.einsum("BKGS,BSKD->BKGD", weights.astype(v.dtype), v).reshape(batch, 1, heads, head_dim)


# The backward pass makes the weights again from the saved log-sum of each row, as flash attention does (Dao et al.
# 2022): the square of weights is never stored. The heads of a group lie along the queries, so that every product is a
# plain batched matrix product; a CPU takes half as long with these as with the five-axis einsum.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, segments, window):
    return _forward(q, k, v, segments, window)[0]


def _forward(q, k, v, segments, window):
    outputs, log_sums = [], []
    for first, start, end in _blocks(q.shape[3], window):
        shape = (*q.shape[:3], end - start)
        scores = _scores(q, k, segments, window, first, start, end)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("BKTS,BKSD->BKTD", _join(weights).astype(v.dtype), v[:, :, first:end])
        outputs.append((out.reshape(*shape, -1) / total).astype(q.dtype))
        log_sums.append(top + jnp.log(total))
    out, log_sum = jnp.concatenate(outputs, axis=3), jnp.concatenate(log_sums, axis=3)
    return out, (q, k, v, segments, out, log_sum)


def _backward(window, saved, d_out):
    q, k, v, segments, out, log_sum = saved
    delta = (d_out.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for first, start, end in _blocks(q.shape[3], window):
        here, shape = slice(start, end), (*q.shape[:3], end - start)
        q_here, d_here = _join(q[:, :, :, here]), _join(d_out[:, :, :, here])
        weights = jnp.exp(_scores(q, k, segments, window, first, start, end) - log_sum[:, :, :, here])
        d_weights = jnp.einsum("BKTD,BKSD->BKTS", d_here, v[:, :, first:end]).reshape(*shape, -1)
        d_scores = _join(weights * (d_weights - delta[:, :, :, here])).astype(q.dtype)
        weights = _join(weights).astype(v.dtype)
        d_q.append(jnp.einsum("BKTS,BKSD->BKTD", d_scores, k[:, :, first:end]).reshape(*shape, -1))
        d_k = d_k.at[:, :, first:end].add(jnp.einsum("BKTS,BKTD->BKSD", d_scores, q_here))
        d_v = d_v.at[:, :, first:end].add(jnp.einsum("BKTS,BKTD->BKSD", weights, d_here))
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _blocks(length: int, window: int) -> list[tuple[int, int, int]]:
    """Blocks of queries, at most four, as (first key, first query, end): a block sees the keys from its first query's
    window up to its own end, so that most of what causality masks is never computed."""
    size = max(256, -(-length // 4))
    return [
        (max(0, start - window + 1) if window else 0, start, min(start + size, length))
        for start in range(0, length, size)
    ]


def _join(x):
    """`[batch, kv_heads, group, block, n]` → `[batch, kv_heads, group * block, n]`."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _scores(q, k, segments, window, first, start, end):
    """Float32 scores of the queries from start to end with the keys from first to end,
    `[batch, kv_heads, group, end - start, end - first]`."""
    scores = jnp.einsum(
        "BKTD,BKSD->BKTS", _join(q[:, :, :, start:end]), k[:, :, first:end], preferred_element_type=jnp.float32
    )
    distance = jnp.arange(start, end)[:, None] - jnp.arange(first, end)
    near = (distance >= 0) & (distance < window) if window else distance >= 0
    same = segments[:, start:end, None] == segments[:, None, first:end]
    return jnp.where((near & same)[:, None, None], scores.reshape(*q.shape[:3], end - start, end - first), _MASKED)
