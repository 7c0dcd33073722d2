"""Attention over packed rows on an NVIDIA GPU: cuDNN's flash attention over sequences of unequal length."""

import functools

import jax
import jax.numpy as jnp
from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention
from jax.ad_checkpoint import checkpoint_name

# cuDNN starts work for as many notes as a row may hold, there or not, and keeps log-sums for each. Most rows hold few.
_FEW = 8


def attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int) -> jax.Array:
    """Causal attention within segments, on one device.

    cuDNN is told where each note starts and how long it is, and never sees what lies between; no mask is made.

    Args:
      q, k, v, segments, window: as in `attention.attend`, in bfloat16 or float16; the positions of a segment lie side
        by side.

    Returns:
      As `q`; zero at padding. A position of a segment beyond `most_notes` gets NaN, and not what belongs to no one.
    """
    length, heads = q.shape[1:3]
    most = most_notes(length)
    inside = ((segments > 0) & (segments <= most))[..., None, None]
    # Once on the way in, so that what cuDNN leaves in the gradient between the notes goes nowhere. Keys and values are
    # repeated since JAX 0.10 gives cuDNN the places of the keys as if there were as many heads as the queries have.
    q = jnp.where(inside, q, 0)
    k, v = (jnp.repeat(jnp.where(inside, x, 0), heads // k.shape[2], axis=2) for x in (k, v))
    few = functools.partial(_packed, window=window, notes=min(_FEW, most))
    many = functools.partial(_packed, window=window, notes=most)
    out = jax.lax.cond(segments.max() <= _FEW, few, many, q, k, v, segments)
    out = jnp.where(inside, out, jnp.where(segments > most, jnp.nan, 0.0)[..., None, None].astype(out.dtype))
    return checkpoint_name(out, "attention")


def most_notes(length: int) -> int:
    """Returns how many notes a row may hold: as many as `data.loader.max_segments` packs, and two at least, for with
    one JAX takes the row as not packed."""
    return max(2, length // 16)


def spans(segments: jax.Array, notes: int) -> tuple[jax.Array, jax.Array]:
    """Returns (lengths `[batch, notes]`, starts `[batch, notes + 1]`) of the segments 1 to `notes` of each row, -1 for
    those that are absent and in the last column of starts."""
    belongs = segments[..., None] == jnp.arange(1, notes + 1)
    lengths = belongs.sum(axis=1, dtype=jnp.int32)
    starts = belongs.argmax(axis=1).astype(jnp.int32)
    starts = jnp.where(lengths > 0, starts, -1)
    return jnp.where(lengths > 0, lengths, -1), jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)


def _packed(q, k, v, segments, window: int, notes: int):
    lengths, starts = spans(segments, notes)
    return dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=starts,
        kv_offsets=starts,
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL,
        sliding_window_length=window if 0 < window < q.shape[1] else None,
    )
