"""Attention over packed rows as XLA compiles it: a loop over blocks of queries, each with the keys it may see.

A row is cut into blocks of queries. Which keys a block needs is known from the segments: from the first block that
shares a segment with it, up to its own end. The loop takes one block after the other and chooses, among four
widths, the narrowest that holds these keys; a packed row of short notes costs little more than the notes alone.

The weights of a block are made whole, by a softmax in two passes, and made again in the backward pass from the saved
log-sum, as flash attention does (Dao et al. 2022): what is as large as length by length never exists. On a CPU the
products of narrow matrices differ by a factor of seven with their layout, so what is summed over queries is made
`[head_dim, keys]`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap

from jaxlora.models.layout import platform

MASKED = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_xla(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int = 0) -> jax.Array:
    """Causal attention within segments; the arguments and the result are those of `attention.attend`."""
    return _attend(q, k, v, segments, window)[0]


def _attend(q, k, v, segments, window):
    """Returns the output as `q` is, and what the backward pass needs, in blocks."""
    length, block = q.shape[1], _block(q.shape[1])
    q, k, v, segments = (_padded(x, block) for x in (q, k, v, segments))
    blocks = _to_blocks(q * q.shape[-1] ** -0.5, k.shape[2], block)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out, log_sum = _over_rows(_forward, window)(blocks, k, v, segments)
    # Saved under a name, so that a remat policy that keeps it need not compute the attention again.
    out, log_sum = checkpoint_name(out, "attention"), checkpoint_name(log_sum, "attention")
    return _from_blocks(out)[:, :length], (blocks, k, v, segments, out, log_sum)


def _gradients(window, saved, d_out):
    q, k, v, segments, out, log_sum = saved
    length, block = d_out.shape[1], _block(d_out.shape[1])
    d_out = _to_blocks(_padded(d_out, block), k.shape[1], block)
    delta = (d_out.astype(jnp.float32) * out).sum(axis=-1)
    d_q, d_k, d_v = _over_rows(_backward, window)(q, k, v, segments, d_out, log_sum, delta)
    d_q = (_from_blocks(d_q) * q.shape[-1] ** -0.5)[:, :length]
    return d_q.astype(q.dtype), *(x.transpose(0, 3, 1, 2)[:, :length].astype(k.dtype) for x in (d_k, d_v)), None


attend_xla.defvjp(_attend, _gradients)


def _over_rows(function, window):
    """Returns `function(*arrays, window)`, its arrays `[rows, ...]`, as one primitive whose `vmap` is more rows.

    A loop with a choice in it must not be mapped, for the mapped one takes every branch. Nor may a scan over layers
    look into it: it would make the masks of all blocks ahead, as they do not depend on the layer, and store them.
    """
    whole = custom_vmap(lambda *arrays: function(*arrays, window))

    @whole.def_vmap
    def _(count, mapped, *arrays):
        arrays = [x if m else jnp.broadcast_to(x, (count, *x.shape)) for x, m in zip(arrays, mapped, strict=True)]
        results = _over_rows(function, window)(*(x.reshape(-1, *x.shape[2:]) for x in arrays))
        return tuple(x.reshape(count, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return whole


def _forward(q, k, v, segments, window):
    """Returns (the output, the log-sum of every query's weights) in blocks.

    Args:
      q: `[rows, blocks, kv_heads, group, block, head_dim]`, scaled. k, v: `[rows, kv_heads, length, head_dim]`.
    """

    def attend_block(mask, keys, q):
        scores = _scores(q, keys(k), mask)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("KTS,KSD->KTD", _join(weights).astype(v.dtype), keys(v)).reshape(q.shape) / total
        return out.astype(q.dtype), (top + jnp.log(total))[..., 0]

    def body(_, placed):
        return None, _with_needed_keys(segments, q.shape, window, attend_block, *placed)

    results = jax.lax.scan(body, None, (*_places(segments, q.shape), _flat(q)))[1]
    return tuple(x.reshape(*q.shape[:2], *x.shape[1:]) for x in results)


def _backward(q, k, v, segments, d_out, log_sum, delta, window):
    """Returns the gradients of q, in blocks, and of k and v as float32 `[rows, kv_heads, head_dim, length]`."""

    def attend_block(mask, keys, q, d_out, log_sum, delta):
        weights = jnp.exp(_scores(q, keys(k), mask) - log_sum[..., None])
        d_weights = jnp.einsum("KTD,KSD->KTS", _join(d_out), keys(v)).reshape(weights.shape)
        d_scores = _join(weights * (d_weights - delta[..., None])).astype(q.dtype)
        weights = _join(weights).astype(q.dtype)
        d_q = jnp.einsum("KTS,KSD->KTD", d_scores, keys(k)).reshape(q.shape)
        d_k = jnp.einsum("KTD,KTS->KDS", _join(q), d_scores, preferred_element_type=jnp.float32)
        d_v = jnp.einsum("KTD,KTS->KDS", _join(d_out), weights, preferred_element_type=jnp.float32)
        return d_q, keys.put(d_k), keys.put(d_v)

    def body(sums, placed):
        row, (d_q, *parts) = placed[0], _with_needed_keys(segments, q.shape, window, attend_block, *placed)
        return tuple(x.at[row].add(part) for x, part in zip(sums, parts, strict=True)), d_q

    zeros = jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2]), jnp.float32)
    inputs = (*_places(segments, q.shape), *(_flat(x) for x in (q, d_out, log_sum, delta)))
    (d_k, d_v), d_q = jax.lax.scan(body, (zeros, zeros), inputs)
    return d_q.reshape(q.shape), d_k, d_v


class _Keys:
    """The keys that one block of queries may see: `width` of them from position `start` of a row."""

    def __init__(self, row: jax.Array, start: jax.Array, width: int, length: int):
        self.row, self.start, self.width, self.length = row, start, width, length

    def __call__(self, x: jax.Array) -> jax.Array:
        """Takes the keys of `x: [rows, kv_heads, length, head_dim]`, or the segments of `x: [rows, length]`."""
        axis = max(1, x.ndim - 2)
        return jax.lax.dynamic_slice_in_dim(x[self.row], self.start, self.width, axis - 1)

    def put(self, x: jax.Array) -> jax.Array:
        """Puts `x: [kv_heads, head_dim, width]` where it belongs among zeros, `[kv_heads, head_dim, length]`."""
        zeros = jnp.zeros((*x.shape[:-1], self.length), x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(zeros, x, self.start, -1)


def _places(segments, shape):
    """Returns (the row of every block of queries, where it begins, the first key that it may need)."""
    rows, blocks, block = shape[0], shape[1], shape[4]
    lows, highs = (f(segments.reshape(rows, blocks, block), axis=2) for f in (jnp.min, jnp.max))
    shared = (lows[:, None] <= highs[:, :, None]) & (highs[:, None] >= lows[:, :, None])
    row, number = jnp.divmod(jnp.arange(rows * blocks), blocks)
    return row, number * block, jnp.argmax(shared, axis=2).reshape(-1) * block


def _with_needed_keys(segments, shape, window, attend_block, row, at, first, *inputs):
    """Calls `attend_block(mask, keys, *inputs)` for one block of queries, with as few keys as will do.

    Args:
      shape: of the queries in blocks. row, at, first: of `_places`.
    """
    blocks, block = shape[1], shape[4]
    length, step = blocks * block, -(-blocks // 4) * block  # four widths, so that a long row compiles no longer
    own = jax.lax.dynamic_slice_in_dim(segments[row], at, block)
    if window:
        first = jnp.maximum(first, at - window + 1)
    if platform() == "gpu":  # where a choice would wait for the host
        step = length
    widths = [min(step * i, length) for i in range(1, -(-length // step) + 1)]

    def wide(width):
        def run(inputs):
            keys = _Keys(row, jnp.maximum(at + block - width, 0), width, length)
            distance = at + jnp.arange(block)[:, None] - (keys.start + jnp.arange(width))
            near = (distance >= 0) & (distance < window) if window else distance >= 0
            return attend_block(near & (own[:, None] == keys(segments)), keys, *inputs)

        return run

    return jax.lax.switch((at + block - first - 1) // step, [wide(width) for width in widths], inputs)


def _scores(q, k, mask):
    """Returns the masked float32 scores of a block of queries, `[kv_heads, group, block, width]`."""
    scores = jnp.einsum("KTD,KSD->KTS", _join(q), k, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores.reshape(*q.shape[:3], -1), MASKED)


def _block(length: int) -> int:
    """Returns how many queries are in a block: the fewer, the closer to what is needed, and the more rounds."""
    return 64 if length <= 512 else 128


def _padded(x, block):
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)])


def _to_blocks(x, kv_heads, block):
    """`[rows, length, heads, head_dim]` → `[rows, blocks, kv_heads, group, block, head_dim]`."""
    rows, length, heads, head_dim = x.shape
    x = x.reshape(rows, length // block, block, kv_heads, heads // kv_heads, head_dim)
    return x.transpose(0, 1, 3, 4, 2, 5)


def _from_blocks(x):
    rows, blocks, kv_heads, group, block, head_dim = x.shape
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(rows, blocks * block, kv_heads * group, head_dim)


def _join(x):
    """`[kv_heads, group, block, n]` → `[kv_heads, group * block, n]`: plain batched products of matrices."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _flat(x):
    return x.reshape(-1, *x.shape[2:])
