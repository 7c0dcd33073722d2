"""Rotary embedding and grouped-query attention over packed rows."""

import jax
import jax.numpy as jnp

_MASKED = -1e30


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns the cosine and sine of the rotary angles of `positions: [batch, length]`, each
    `[batch, length, 1, head_dim / 2]` in float32 (in bfloat16 the angles of late positions are worthless)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates `x: [batch, length, heads, head_dim]` in Hugging Face's order: the first half pairs with the second."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Causal attention that never crosses a segment.

    Args:
      q: `[batch, length, heads, head_dim]`.
      k, v: `[batch, length, kv_heads, head_dim]`; heads is a multiple of kv_heads.
      segments: `[batch, length]`, the number of the packed note a position belongs to; 0 is padding.

    Returns:
      `[batch, length, heads, head_dim]`. A padding position attends to padding: finite, and never read.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    # [batch, kv_heads, group, length, head_dim] and [batch, kv_heads, length, head_dim]
    q = (q * head_dim**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    out = _attend(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), segments)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


# The backward pass makes the weights again from the saved log-sum of each row, as flash attention does (Dao et al.
# 2022): the square of weights is never stored. The heads of a group lie along the queries, so that every product is a
# plain batched matrix product; a CPU takes half as long with these as with the five-axis einsum.
@jax.custom_vjp
def _attend(q, k, v, segments):
    return _forward(q, k, v, segments)[0]


def _forward(q, k, v, segments):
    outputs, log_sums = [], []
    for start, end in _blocks(q.shape[3]):
        shape = (*q.shape[:3], end - start)
        scores = _scores(q, k, segments, start, end)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("BKTS,BKSD->BKTD", _join(weights).astype(v.dtype), v[:, :, :end])
        outputs.append((out.reshape(*shape, -1) / total).astype(q.dtype))
        log_sums.append(top + jnp.log(total))
    out, log_sum = jnp.concatenate(outputs, axis=3), jnp.concatenate(log_sums, axis=3)
    return out, (q, k, v, segments, out, log_sum)


def _backward(saved, d_out):
    q, k, v, segments, out, log_sum = saved
    delta = (d_out.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, end in _blocks(q.shape[3]):
        here, shape = slice(start, end), (*q.shape[:3], end - start)
        q_here, d_here = _join(q[:, :, :, here]), _join(d_out[:, :, :, here])
        weights = jnp.exp(_scores(q, k, segments, start, end) - log_sum[:, :, :, here])
        d_weights = jnp.einsum("BKTD,BKSD->BKTS", d_here, v[:, :, :end]).reshape(*shape, end)
        d_scores = _join(weights * (d_weights - delta[:, :, :, here])).astype(q.dtype)
        weights = _join(weights).astype(v.dtype)
        d_q.append(jnp.einsum("BKTS,BKSD->BKTD", d_scores, k[:, :, :end]).reshape(*shape, -1))
        d_k = d_k.at[:, :, :end].add(jnp.einsum("BKTS,BKTD->BKSD", d_scores, q_here))
        d_v = d_v.at[:, :, :end].add(jnp.einsum("BKTS,BKTD->BKSD", weights, d_here))
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Blocks of queries, at most four; a block sees the keys up to its own end, so that most of the half of the square
    that causality masks is never computed."""
    size = max(256, -(-length // 4))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _join(x):
    """`[batch, kv_heads, group, block, n]` → `[batch, kv_heads, group * block, n]`."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _scores(q, k, segments, start, end):
    """Float32 scores of the queries from start to end, `[batch, kv_heads, group, end - start, end]`."""
    scores = jnp.einsum(
        "BKTD,BKSD->BKTS", _join(q[:, :, :, start:end]), k[:, :, :end], preferred_element_type=jnp.float32
    )
    causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)
    same = segments[:, start:end, None] == segments[:, None, :end]
    return jnp.where((causal & same)[:, None, None], scores.reshape(*q.shape[:3], end - start, end), _MASKED)
