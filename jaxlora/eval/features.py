"""Kept features: where the head alone is trained, what the frozen model makes of a note is computed once.

The model below the head is the same in every update, so the hidden state that the head reads of a note is too. One pass
over the packed rows gives it for every note; the epochs after that see `[notes, embed]` and no token. Batches, their
order and the losses are those of the ordinary run.
"""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora.config import drops_out
from jaxlora.data.examples import OUTCOMES
from jaxlora.data.loader import Batches
from jaxlora.eval.predict import by_note
from jaxlora.terminal import tell
from jaxlora.train.mesh import replicated, traced_on
from jaxlora.train.objective import Objective


def can_keep(config: ConfigDict, kind: str, base_drops_out: bool = False) -> bool:
    """Returns whether a run sees the same features of each note again and again: it has several epochs, trains nothing
    but the head of whole notes, and drops nothing out.

    Args:
      base_drops_out: whether the base itself draws masks in training, as a BERT does.
    """
    alone = kind in OUTCOMES and set(config.trainable) == {"head"}
    return alone and not drops_out(config, base_drops_out) and config.epochs > 1


class FeatureBatches(Batches):
    """The same batches with `features` `[batch, max_segments, embed]` in place of the tokens.

    Args:
      features: of each note, `[notes, embed]`.
    """

    def __init__(self, batches: Batches, features: np.ndarray):
        vars(self).update(vars(batches))
        self.features = features

    def _rows(self, indices: range) -> dict[str, np.ndarray]:
        notes = self._notes(indices)
        return {"notes": notes, "features": self.features[np.maximum(notes, 1) - 1]}  # of an absent note another's


class Features:
    """The features of the notes of a model, made at the first use of each split.

    Args:
      definition, objective, mesh: of the run.
    """

    def __init__(self, definition: nnx.GraphDef, objective: Objective, mesh: Mesh):
        def step(state, batch):
            return {"features": objective.note_features(nnx.merge(definition, state), batch)}

        self._step = jax.jit(traced_on(mesh, step), out_shardings=replicated(mesh))
        self._mesh = mesh

    def of(self, batches: Batches, state: nnx.State, check: Callable[[], None] = lambda: None) -> Batches:
        """Returns the same batches with the features of their notes.

        Args:
          state: the model's whole state; the head is not looked at.
          check: as in `predict`.
        """
        in_order = Batches(
            batches.notes, batches.length, batches.batch_size, seed=None, own=batches.own, virtual=batches.virtual
        )
        values = by_note(self._step, state, in_order, self._mesh, "features", check)["features"]
        size = f"{values.nbytes / 1e6:,.3g} MB"
        tell(f"the head alone is trained: the features of {len(values):,} notes are kept, {size}")
        return FeatureBatches(batches, values)
