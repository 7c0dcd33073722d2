"""The losses of the two steps, over packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlora.models.bases import Model
from jaxlora.models.heads import next_token_nll


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run minimises.

    Attributes:
      kind: "lm"; "binary", "multiclass" or "multilabel", of a note; "tokens", a tag of each token; "span", the two ends
        of an answer.
      active: names of the adapters in the forward pass.
      class_weights: weight of each class, or () for none.
      loss_chunk: positions of a row whose next-token logits exist at one time.
    """

    kind: str
    active: tuple[str, ...]
    class_weights: tuple[float, ...] = ()
    loss_chunk: int = 512

    def loss(self, model: Model, batch: dict[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Returns the mean loss of a packed batch: over next tokens, over notes, over notes and labels, over tagged
        tokens, or over the ends of answers."""
        return mean(*self.summed(model, batch, key))

    def summed(
        self, model: Model, batch: dict[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (the sum of the weighted losses, the sum of their weights), whose quotient is `loss`.

        Both add up over the parts of a batch. Cross-entropy is weighted as PyTorch does it, sum(w l) / sum(w) over the
        batch (docs/paper.md).
        """
        if self.kind == "lm":
            nll, weights = self.token_nll(model, batch, key)
            return nll.sum(), weights.sum()
        if self.kind == "tokens":
            return _tag_loss(self.position_logits(model, batch, key), batch["labels"])
        if self.kind == "span":
            logits = self.position_logits(model, batch, key)
            words = jnp.where(batch["tokens"] < 0, 0, batch["segments"])  # an answer has no virtual token
            return _end_loss(logits, batch["labels"], words, batch["notes"] > 0)
        logits = self.note_logits(model, batch, key)
        present = (batch["notes"] > 0).astype(jnp.float32)
        if self.kind == "multilabel":
            losses = optax.sigmoid_binary_cross_entropy(logits, batch["labels"]).mean(axis=-1)
            return (losses * present).sum(), present.sum()
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        if self.class_weights:
            present = present * jnp.asarray(self.class_weights)[batch["labels"]]
        return (losses * present).sum(), present.sum()

    def token_nll(self, model: Model, batch: dict[str, jax.Array], key: jax.Array | None = None):
        """Returns (nll, weights) of every position's next token, `[batch, length]`."""
        hidden = self._hidden(model, batch, key)
        return next_token_nll(hidden, model.unembedding(), batch["tokens"], batch["segments"], self.loss_chunk)

    def note_logits(self, model: Model, batch: dict[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Returns the head's logits of every note, `[batch, max_segments, labels]`; of `features`, where the batch has
        them, and not of tokens."""
        if "features" in batch:
            return model.head.every(batch["features"], key)
        hidden = self._hidden(model, batch, key)
        return model.head.every(model.pooled(hidden, batch["segments"], batch["notes"].shape[1]), key)

    def note_features(self, model: Model, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns what the head sees of every note, `[batch, max_segments, embed]` in float32."""
        hidden = self._hidden(model, batch, None)
        return model.pooled(hidden, batch["segments"], batch["notes"].shape[1]).astype(jnp.float32)

    def position_logits(self, model: Model, batch: dict[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Returns the head's logits of every position, `[batch, length, labels]`."""
        return model.head.every(self._hidden(model, batch, key), key)

    def _hidden(self, model: Model, batch: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
        return model(batch["tokens"], batch["segments"], batch["positions"], self.active, key)


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the mean of weighted losses; where nothing has a weight, neither has a loss, and it is 0."""
    return total / jnp.maximum(weight, 1e-6)


def _tag_loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy over the positions whose label is not negative, neither BOS nor padding; (sum, how many)."""
    counted = (labels >= 0).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return (losses * counted).sum(), counted.sum()


def _end_loss(
    logits: jax.Array, ends: jax.Array, segments: jax.Array, present: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the first and of the last token of each segment's answer, over the segment's positions.

    Args:
      logits: `[batch, length, 2]`. ends: `[batch, max_segments, 2]`, positions in the row.
      segments: `[batch, length]`. present: `[batch, max_segments]`.

    Returns:
      (the sum over segments of the mean of their two losses, how many segments).
    """
    of_segment = segments[:, None] == jnp.arange(1, present.shape[1] + 1)[:, None]
    of_segment |= ~present[..., None]  # over nothing, a logsumexp has no gradient
    total = jax.nn.logsumexp(logits[:, None], axis=2, where=of_segment[..., None])
    chosen = jnp.take_along_axis(logits, jnp.maximum(ends, 0), axis=1)
    losses = (total - chosen).mean(axis=-1) * present
    return losses.sum(), present.sum().astype(jnp.float32)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Returns N / (K n_c) for each class c, from the training labels (docs/paper.md); an absent class weighs 0."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * n)) if n else 0.0 for n in counts)
