"""A model and a split to predictions: with features.py and validation.py all of the evaluation that sees a model."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jaxlora.data.loader import Batches
from jaxlora.eval import spans
from jaxlora.eval.predictions import Predictions
from jaxlora.train.mesh import put_batch, replicated, traced_on
from jaxlora.train.objective import Objective


def make_predict_step(definition: nnx.GraphDef, objective: Objective, mesh: Mesh) -> Callable:
    """Returns `step(state, batch) -> {name: [batch, max_segments, ...]}`, jitted, its result on every device.

    It gives `logits`, or for a language model `nll` and `tokens` (and `base_nll`, without any adapter) of each note. Of
    each position, `[batch, length]`, it gives the `chosen` tag and its log-probability (`logits`) for "tokens", and for
    "span" the two `logits`, `[batch, length, 2]`.
    """
    base = dataclasses.replace(objective, active=())

    def step(state, batch):
        model = nnx.merge(definition, state)
        if objective.kind == "span":
            return {"logits": objective.position_logits(model, batch)}
        if objective.kind == "tokens":
            logits = jax.nn.log_softmax(objective.position_logits(model, batch))
            return {"chosen": logits.argmax(axis=-1), "logits": logits.max(axis=-1)}
        if objective.kind != "lm":
            return {"logits": objective.note_logits(model, batch)}
        numbers = jnp.arange(1, batch["notes"].shape[1] + 1)
        of_segment = (batch["segments"][:, :, None] == numbers).astype(jnp.float32)
        nll, weights = objective.token_nll(model, batch)
        base_nll = base.token_nll(model, words_alone(batch))[0] if objective.active else nll
        sums = {"nll": nll, "base_nll": base_nll, "tokens": weights}
        return {name: jnp.einsum("BT,BTS->BS", x, of_segment) for name, x in sums.items()}

    return jax.jit(traced_on(mesh, step), out_shardings=replicated(mesh))


def words_alone(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns a batch whose notes are without their virtual tokens, which become padding between them."""
    virtual = batch["tokens"] < 0
    count = -jnp.minimum(batch["tokens"].min(), 0)  # every note has all of them
    return batch | {
        "tokens": jnp.maximum(batch["tokens"], 0),
        "segments": jnp.where(virtual, 0, batch["segments"]),
        "positions": jnp.maximum(batch["positions"] - count, 0),
    }


def predict(
    step: Callable,
    state: nnx.State,
    batches: Batches,
    kind: str,
    names: tuple[str, ...],
    mesh: Mesh,
    check: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predicts every note of a split once.

    Args:
      step: of `make_predict_step`. state: the model's whole state.
      batches: the split, in order and without labels. names: label names.
      check: called at every batch; an exception of its own ends the prediction.
    """
    notes = batches.notes
    if notes.kind:
        return _of_positions(step, state, batches, names, mesh, check)
    sums = by_note(step, state, batches, mesh, "predicting", check)
    labels = _dense(notes.labels, len(names))
    return Predictions(kind, names, notes.ids, notes.patients, labels, **sums, groups=notes.groups)


def by_note(
    step: Callable,
    state: nnx.State,
    batches: Batches,
    mesh: Mesh,
    doing: str,
    check: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Returns what a step says of each note, `[notes, ...]` by name, where it gives `[batch, max_segments, ...]`.

    Args:
      step: (state, batch) to arrays by name, each on every device. doing: what the progress bar says.
      check: as in `predict`.
    """
    count = len(batches.notes.ids)
    sums: dict[str, np.ndarray] = {}
    for batch in _progress(batches, doing):
        check()
        result = jax.device_get(step(state, put_batch(mesh, batch)))
        where = batch["notes"] > 0
        for name, values in result.items():
            total = sums.setdefault(name, np.zeros((count, *values.shape[2:]), np.float32))
            # A long note in chunks is in several segments: its parts add up.
            np.add.at(total, batch["notes"][where] - 1, values[where])
    return sums


def _of_positions(
    step: Callable, state: nnx.State, batches: Batches, names: tuple[str, ...], mesh: Mesh, check: Callable[[], None]
) -> Predictions:
    """Predicts every token of a split, and from the tokens the entities or answers of its notes."""
    notes = batches.notes
    values: dict[str, np.ndarray] = {}
    for number, batch in enumerate(_progress(batches, "predicting")):
        check()
        result = jax.device_get(step(state, put_batch(mesh, batch)))
        for row in range(min(batches.batch_size, len(batches.rows) - number * batches.batch_size)):
            at = 0
            for piece in batches.rows.pieces(number * batches.batch_size + row):
                start, end = notes.offsets[piece : piece + 2]
                at += batches.virtual
                for name, of_row in result.items():
                    whole = values.setdefault(name, np.zeros((len(notes.tokens), *of_row.shape[2:]), of_row.dtype))
                    whole[start:end] = of_row[row, at : at + end - start]
                at += end - start
    truth, about = spans.annotated(notes), (notes.kind, names, notes.ids, notes.patients)
    if notes.kind == "tokens":
        # BOS has neither a tag nor a place in a note.
        real, of_note = notes.labels >= 0, np.repeat(notes.notes, notes.lengths)
        chosen = values["chosen"][real]
        found = spans.entities(chosen, of_note[real], notes.spans[real])
        labels, logits = notes.labels[real], values["logits"][real]
        return Predictions(*about, labels, logits, chosen=chosen, found=found, truth=truth)
    best, margins = spans.best_answers(notes, values["logits"])
    best[~(margins > 0)] = 0
    answered = np.flatnonzero(best[:, 1])
    found = np.stack([answered, *best[answered].T, np.zeros_like(answered)], axis=1)
    labels = np.isin(np.arange(len(notes.ids)), truth[:, 0]).astype(np.int64)
    scores = spans.score_answers(notes, best, truth)
    return Predictions(*about, labels, margins, found=found, truth=truth, scores=scores)


def _progress(batches: Batches, doing: str) -> tqdm:
    hidden = jax.process_index() > 0
    return tqdm(batches, total=len(batches), desc=doing, unit="batch", leave=False, disable=hidden)


def _dense(labels: np.ndarray | list[np.ndarray] | None, count: int) -> np.ndarray:
    if labels is None:
        return np.zeros(0, np.int64)
    if isinstance(labels, np.ndarray):
        return labels
    hot = np.zeros((len(labels), count), np.uint8)
    for row, present in enumerate(labels):
        hot[row, present] = 1
    return hot
