"""The losses of the two steps, over packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlora.models.heads import next_token_nll
from jaxlora.models.llama import Llama


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run minimises.

    Attributes:
      kind: "lm", "binary", "multiclass" or "multilabel".
      active: names of the adapters in the forward pass.
      class_weights: weight of each class, or () for none.
      loss_chunk: positions of a row whose next-token logits exist at one time.
    """

    kind: str
    active: tuple[str, ...]
    class_weights: tuple[float, ...] = ()
    loss_chunk: int = 512

    def loss(self, model: Llama, batch: dict[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Returns the mean loss of a packed batch: over next tokens, over notes, or over notes and labels.

        Cross-entropy is weighted as PyTorch does it, sum(w l) / sum(w) over the batch (paper section 1.6).
        """
        if self.kind == "lm":
            nll, weights = self.token_nll(model, batch, key)
            return nll.sum() / jnp.maximum(weights.sum(), 1.0)
        logits = self.note_logits(model, batch, key)
        present = (batch["notes"] > 0).astype(jnp.float32)
        if self.kind == "multilabel":
            losses = optax.sigmoid_binary_cross_entropy(logits, batch["labels"]).mean(axis=-1)
            return (losses * present).sum() / jnp.maximum(present.sum(), 1.0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        if self.class_weights:
            present = present * jnp.asarray(self.class_weights)[batch["labels"]]
        return (losses * present).sum() / jnp.maximum(present.sum(), 1e-6)

    def token_nll(self, model: Llama, batch: dict[str, jax.Array], key: jax.Array | None = None):
        """Returns (nll, weights) of every position's next token, `[batch, length]`."""
        hidden = self._hidden(model, batch, key)
        return next_token_nll(hidden, model.unembedding(), batch["tokens"], batch["segments"], self.loss_chunk)

    def note_logits(self, model: Llama, batch: dict[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Returns the head's logits of every note, `[batch, max_segments, labels]`."""
        return model.head(self._hidden(model, batch, key), batch["segments"], batch["notes"].shape[1])

    def _hidden(self, model: Llama, batch: dict[str, jax.Array], key: jax.Array | None) -> jax.Array:
        return model(batch["tokens"], batch["segments"], batch["positions"], self.active, key)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Returns N / (K n_c) for each class c, from the training labels (paper section 1.6); an absent class weighs 0."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * n)) if n else 0.0 for n in counts)
