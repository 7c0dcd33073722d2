"""Rotary position embedding and the ways in which it is stretched to longer contexts."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions become angles.

    Attributes:
      theta: the base of the frequencies, theta^(-2i/head_dim).
      kind: "default"; "linear", every frequency divided by `factor`; "dynamic", theta grown with a note that is longer
        than `context`; "llama3", low frequencies divided by `factor`, high ones kept, those between interpolated.
      context: positions that the base was pretrained for.
      low, high: of "llama3": wavelengths above context/low are low frequencies, below context/high high ones.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    context: int = 0
    low: float = 1.0
    high: float = 4.0


def rotary(rope: Rope, positions: jax.Array, lengths: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Returns the cosine and sine of the rotary angles, each `[batch, length, 1, head_dim / 2]` in float32 (in bfloat16
    the angles of late positions are worthless).

    Args:
      positions: `[batch, length]`, from 0 in every note.
      lengths: `[batch, length]`, the length of the note that a position belongs to; only "dynamic" reads it. Each note
        is stretched by its own length, so that a packed note is computed as it is alone; transformers stretches all
        notes of a batch by the longest.
    """
    exponent = -jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    if rope.kind == "dynamic":
        longer = jnp.maximum(lengths, rope.context)[..., None, None].astype(jnp.float32)
        grown = rope.factor * longer / rope.context - (rope.factor - 1.0)
        frequency = (rope.theta * grown ** (head_dim / (head_dim - 2))) ** exponent
    else:
        frequency = rope.theta**exponent
    if rope.kind == "linear":
        frequency = frequency / rope.factor
    elif rope.kind == "llama3":
        kept = (rope.context * frequency / (2 * jnp.pi) - rope.low) / (rope.high - rope.low)
        kept = jnp.clip(kept, 0.0, 1.0)
        frequency = kept * frequency + (1.0 - kept) * frequency / rope.factor
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def note_lengths(positions: jax.Array, segments: jax.Array) -> jax.Array:
    """Returns the length of the note that each position of packed rows belongs to, `[batch, length]`."""
    positions, rows = jnp.asarray(positions), jnp.arange(positions.shape[0])[:, None]
    last = jnp.zeros((positions.shape[0], positions.shape[1] + 1), positions.dtype).at[rows, segments].max(positions)
    return last[rows, segments] + 1


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates `x: [batch, length, heads, head_dim]` in Hugging Face's order: the first half pairs with the second."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
