"""Which adapters of a trained run changed, and which of them its forward pass knows of."""

import hashlib

import jax
import numpy as np
from flax import nnx

from jaxlora import partition
from jaxlora.data import builders
from jaxlora.data.loader import Batches
from jaxlora.data.tokens import tokenize
from jaxlora.eval.predict import make_predict_step
from jaxlora.reproduce.results import Adapter
from jaxlora.restore import RestoredRun
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import own_rows, put_batch
from jaxlora.train.objective import Objective

_NUDGE = 0.01  # added to every parameter of an adapter: far above what rounding hides, also in bfloat16


def adapters_of(folder: str, name: str) -> list[Adapter]:
    """Returns what became of each adapter of a run.

    What an adapter started from is made once more: from its own earlier run, or from the seed. Its effect is measured
    on the first notes of the test split, by moving its parameters.

    Args:
      folder: of a trained run of an outcome. name: what the result calls it.
    """
    run = RestoredRun(folder)
    definition, state = nnx.split(run.model)
    base = partition.select(state, ["base"])
    fresh = nnx.state(assemble(run.config, len(run.labels), run.mesh, fresh=True, base=base))
    source = builders.load(run.config.data.dir, run.config.data.name).split("test")
    rows = [source[i] for i in range(min(len(source), run.config.batch_size))]
    notes = tokenize(rows, run.tokenizer, run.config.data.length, run.config.data.long_notes, lambda _: None)
    width = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    batches = Batches(notes, run.config.data.length, width, seed=None, own=own_rows(run.mesh, width))
    batch = put_batch(run.mesh, next(iter(batches)))
    objective = Objective(run.kind, tuple(run.config.active), loss_chunk=run.config.loss_chunk)
    step = make_predict_step(definition, objective, run.mesh)
    logits = np.asarray(step(state, batch)["logits"])
    trained = partition.trainable_partitions(run.model, run.config.trainable)
    found = []
    for adapter in run.config.adapters:
        own = [f"adapter/{adapter}"]
        moved = step(_nudged(state, own[0]), batch)["logits"]
        found.append(
            Adapter(
                name,
                adapter,
                digest(partition.select(fresh, own)),
                digest(partition.select(state, own)),
                own[0] in trained,
                adapter in run.config.active,
                float(np.abs(np.asarray(moved) - logits).max()),
            )
        )
    return found


def digest(state: nnx.State) -> str:
    """Returns 16 hexadecimal digits that tell the names and the bits of some parameters."""
    whole = hashlib.sha256()
    for path, leaf in sorted(nnx.to_flat_state(state)):
        whole.update(".".join(map(str, path)).encode() + np.asarray(jax.device_get(leaf[...])).tobytes())
    return whole.hexdigest()[:16]


def _nudged(state: nnx.State, of: str) -> nnx.State:
    """Returns a model's state in which every parameter of one partition is a little larger."""
    return nnx.from_flat_state(
        [
            (path, leaf.replace(leaf[...] + _NUDGE) if partition.partition_of(path) == of else leaf)
            for path, leaf in nnx.to_flat_state(state)
        ]
    )
