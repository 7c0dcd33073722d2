"""What sits on the hidden states: the classification head and the language-model loss."""

import jax
import jax.numpy as jnp
from flax import nnx


class ClassificationHead(nnx.Module):
    """`logits = h W` of the last real token of each segment, without bias (paper section 1.5, as transformers does), or
    of every token."""

    def __init__(self, embed: int, labels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (embed, labels), jnp.float32))

    def __call__(self, hidden: jax.Array, segments: jax.Array, max_segments: int) -> jax.Array:
        """Classifies every segment of packed rows.

        Args:
          hidden: `[batch, length, embed]`.
          segments: `[batch, length]`, numbered 1, 2, ... within a row; 0 is padding, on whichever side.
          max_segments: how many segments a row has at most.

        Returns:
          float32 logits `[batch, max_segments, labels]`; those of absent segments mean nothing.
        """
        numbers = jnp.arange(1, max_segments + 1)
        index = jnp.arange(segments.shape[1])
        last = jnp.max(jnp.where(segments[:, None] == numbers[:, None], index, 0), axis=-1)
        pooled = jnp.take_along_axis(hidden, last[..., None], axis=1)
        return self.every(pooled)

    def every(self, hidden: jax.Array) -> jax.Array:
        """Returns the float32 logits of every position, `[..., labels]` of `[..., embed]`."""
        return hidden.astype(jnp.float32) @ self.kernel[...]


def next_token_nll(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array, segments: jax.Array, chunk: int):
    """Negative log-likelihood of each position's next token, without ever holding all logits.

    The rows are walked in chunks of positions whose logits are made again in the backward pass; only the gradient
    towards `hidden` is formed, unless the base itself is trained.

    Args:
      hidden: `[batch, length, embed]`.
      unembedding: `[embed, vocab]`.
      tokens, segments: `[batch, length]`.
      chunk: positions of each row whose logits exist at one time; a divisor of the length, else the whole length.

    Returns:
      (nll, weights), both float32 `[batch, length]`; the weight is 1 where the next token is of the same segment.
    """
    batch, length, _ = hidden.shape
    targets = jnp.roll(tokens, -1, axis=1)
    following = jnp.roll(segments, -1, axis=1).at[:, -1].set(0)
    weights = ((segments == following) & (segments > 0)).astype(jnp.float32)
    if length % chunk or chunk >= length:
        return _nll(hidden, unembedding, targets) * weights, weights

    def chunked(x):
        return jnp.moveaxis(x.reshape(batch, length // chunk, chunk, *x.shape[2:]), 1, 0)

    def body(_, part):
        return None, jax.checkpoint(_nll)(part[0], unembedding, part[1])

    _, nll = jax.lax.scan(body, None, (chunked(hidden), chunked(targets)))
    return jnp.moveaxis(nll, 0, 1).reshape(batch, length) * weights, weights


def _nll(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array) -> jax.Array:
    logits = jnp.einsum("BTD,DV->BTV", hidden, unembedding.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
