"""A model and a split to predictions: the only part of the evaluation that sees a model."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jaxlora.data.loader import Batches
from jaxlora.eval.predictions import Predictions
from jaxlora.train.mesh import put_batch, replicated
from jaxlora.train.objective import Objective


def make_predict_step(definition: nnx.GraphDef, objective: Objective, mesh: Mesh) -> Callable:
    """Returns `step(state, batch) -> {name: [batch, max_segments, ...]}`, jitted, its result on every device.

    It gives `logits`, or for a language model `nll` and `tokens` (and `base_nll`, without any adapter) of each note.
    """
    base = dataclasses.replace(objective, active=())

    def step(state, batch):
        model = nnx.merge(definition, state)
        if objective.kind != "lm":
            return {"logits": objective.note_logits(model, batch)}
        numbers = jnp.arange(1, batch["notes"].shape[1] + 1)
        of_segment = (batch["segments"][:, :, None] == numbers).astype(jnp.float32)
        nll, weights = objective.token_nll(model, batch)
        base_nll = base.token_nll(model, batch)[0] if objective.active else nll
        sums = {"nll": nll, "base_nll": base_nll, "tokens": weights}
        return {name: jnp.einsum("BT,BTS->BS", x, of_segment) for name, x in sums.items()}

    return jax.jit(step, out_shardings=replicated(mesh))


def predict(
    step: Callable, state: nnx.State, batches: Batches, kind: str, names: tuple[str, ...], mesh: Mesh
) -> Predictions:
    """Predicts every note of a split once.

    Args:
      step: of `make_predict_step`. state: the model's whole state.
      batches: the split, in order and without labels. names: label names.
    """
    notes = batches.notes
    count = len(notes.ids)
    sums: dict[str, np.ndarray] = {}
    for batch in tqdm(batches, total=len(batches), desc="predicting", unit="batch", leave=False):
        result = jax.device_get(step(state, put_batch(mesh, batch)))
        where = batch["notes"] > 0
        for name, values in result.items():
            total = sums.setdefault(name, np.zeros((count, *values.shape[2:]), np.float32))
            # A long note in chunks is in several segments: its parts add up.
            np.add.at(total, batch["notes"][where] - 1, values[where])
    empty = np.zeros(0, np.float32)
    return Predictions(
        kind,
        names,
        notes.ids,
        notes.patients,
        _dense(notes.labels, len(names)),
        sums.get("logits", empty),
        sums.get("nll", empty),
        sums.get("base_nll", empty),
        sums.get("tokens", empty),
    )


def _dense(labels: np.ndarray | list[np.ndarray] | None, count: int) -> np.ndarray:
    if labels is None:
        return np.zeros(0, np.int64)
    if isinstance(labels, np.ndarray):
        return labels
    hot = np.zeros((len(labels), count), np.uint8)
    for row, present in enumerate(labels):
        hot[row, present] = 1
    return hot
