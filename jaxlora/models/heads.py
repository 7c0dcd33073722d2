"""What sits on the hidden states: the classification head and the language-model loss."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlora.models.layout import BATCH, constrain

WORDS = ("fsdp", "tensor")  # the mesh axes that share out the vocabulary where logits are made


class ClassificationHead(nnx.Module):
    """`logits = h W` of the last real token of each segment, without bias (docs/paper.md, as transformers does), or
    of every token.

    Args:
      bias, dropout: of a BERT's head, which has a bias and drops out what it reads.
      rngs: its stream `head`, where it has one, so that a head starts alike whatever adapters are below it.
    """

    def __init__(self, embed: int, labels: int, bias: bool = False, dropout: float = 0.0, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.head(), (embed, labels), jnp.float32))
        if bias:
            self.bias = nnx.Param(jnp.zeros((labels,), jnp.float32))
        self.dropout = dropout

    def __call__(self, hidden: jax.Array, segments: jax.Array, max_segments: int) -> jax.Array:
        """Classifies every segment of packed rows.

        Args:
          hidden: `[batch, length, embed]`.
          segments: `[batch, length]`, numbered 1, 2, ... within a row; 0 is padding, on whichever side.
          max_segments: how many segments a row has at most.

        Returns:
          float32 logits `[batch, max_segments, labels]`; those of absent segments mean nothing.
        """
        return self.every(pool(hidden, segments, max_segments))

    def every(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns the float32 logits of every position, `[..., labels]` of `[..., embed]`.

        Args:
          key: for the dropout, the one that the model below was called with; None computes without.
        """
        hidden = dropout(hidden.astype(jnp.float32), self.dropout, None if key is None else jax.random.fold_in(key, 1))
        logits = hidden @ self.kernel[...]
        return logits + self.bias[...] if hasattr(self, "bias") else logits


def dropout(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
    """Returns `x`, each number zero with the probability `rate` and else larger by 1 / (1 - rate); without a key, or
    at the rate 0, as it is."""
    if key is None or (not isinstance(rate, jax.Array) and rate == 0.0):
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros_like(x))


def pool(hidden: jax.Array, segments: jax.Array, max_segments: int) -> jax.Array:
    """Returns the hidden state of the last token of each segment, `[batch, max_segments, embed]`; the arguments are
    those of `ClassificationHead`."""
    numbers = jnp.arange(1, max_segments + 1)
    index = jnp.arange(segments.shape[1])
    last = jnp.max(jnp.where(segments[:, None] == numbers[:, None], index, 0), axis=-1)
    return jnp.take_along_axis(hidden, last[..., None], axis=1)


def next_token_nll(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array, segments: jax.Array, chunk: int):
    """Negative log-likelihood of each position's next token, without ever holding all logits.

    The rows are walked in chunks of positions whose logits are made again in the backward pass; only the gradient
    towards `hidden` is formed, unless the base itself is trained.

    Args:
      hidden: `[batch, length, embed]`.
      unembedding: `[embed, vocab]`.
      tokens, segments: `[batch, length]`.
      chunk: positions of each row whose logits exist at one time.

    Returns:
      (nll, weights), both float32 `[batch, length]`; the weight is 1 where the next token is of the same segment, and
      neither token a virtual one. PEFT also counts the first token after the last virtual one, for the techniques that
      have a prediction there; here perplexity is over the same tokens for every technique.
    """
    batch, length, _ = hidden.shape
    words = (tokens >= 0) & (jnp.roll(tokens, -1, axis=1) >= 0)
    targets = jnp.maximum(jnp.roll(tokens, -1, axis=1), 0)
    if words_shared(unembedding.shape[1]):
        unembedding = constrain(unembedding.astype(hidden.dtype), None, WORDS)
    following = jnp.roll(segments, -1, axis=1).at[:, -1].set(0)
    weights = ((segments == following) & (segments > 0) & words).astype(jnp.float32)
    if chunk >= length:
        return _nll(hidden, unembedding, targets) * weights, weights
    count = -(-length // chunk)

    def chunked(x):
        x = jnp.pad(x, [(0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    def body(_, part):
        return None, jax.checkpoint(_nll)(part[0], unembedding, part[1])

    _, nll = jax.lax.scan(body, None, (chunked(hidden), chunked(targets)))
    return jnp.moveaxis(nll, 0, 1).reshape(batch, -1)[:, :length] * weights, weights


def words_shared(vocab: int) -> bool:
    """Returns whether the devices that the base is cut over share out the words of the vocabulary.

    They then gather the hidden states of their rows and keep the unembedding apart; the other way round, each would
    hold it whole, and gather it for every chunk.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and vocab % math.prod(mesh.shape[axis] for axis in WORDS) == 0


def _nll(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array) -> jax.Array:
    shared = words_shared(unembedding.shape[1])
    if shared:
        # Said both ways round, so that the gradient too is sent back to the rows' own devices.
        hidden, targets = constrain(constrain(hidden, BATCH), "data"), constrain(targets, "data")
    logits = jnp.einsum("BTD,DV->BTV", hidden, unembedding.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if shared:
        logits = constrain(logits, "data", None, WORDS)
    nll = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return constrain(nll, BATCH) if shared else nll
