"""The step that `train` would run, compiled for devices that need not be there."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.config import virtual_tokens
from jaxlora.data.examples import ANNOTATED
from jaxlora.data.loader import max_segments, row_length
from jaxlora.models.layout import BATCH
from jaxlora.train.assemble import abstract, model_shape
from jaxlora.train.memory import device_bytes
from jaxlora.train.mesh import replicated
from jaxlora.train.objective import Objective
from jaxlora.train.update import make_update

_UPDATES = 1000  # of the schedule: a number in the program, without influence on anything here


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a run is trained for: a kind of task and how many labels its head has, 0 for none."""

    kind: str
    labels: int
    source: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
      kinds: bytes of each kind of argument on a device, by the shapes alone.
      arguments, temporaries, outputs, aliased, code: bytes on a device as the compiler has them; `aliased` are outputs
        that take the place of arguments.
      hlo: the optimised program. seconds: that it took to trace and compile.
      flops: of a device, as XLA counts them: a loop once, and a kernel of its own not at all.
    """

    kinds: dict[str, int]
    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int
    hlo: str
    seconds: float
    flops: float

    @property
    def total(self) -> int:
        """Bytes that a device needs during an update."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code


class TooLarge(Exception):
    """The compiler found that a program does not fit: `needed` bytes of `limit`."""

    def __init__(self, needed: float, limit: float):
        super().__init__(needed, limit)
        self.needed, self.limit = needed, limit


def aim_of(config: ConfigDict) -> Aim:
    """Returns what a config is trained for: as its prepared dataset says, or, where that is not here, two classes for
    a run with a head and a language model for one without."""
    from jaxlora.data import builders

    if config.data.dir and config.data.name in builders.names(config.data.dir):
        task = builders.load(config.data.dir, config.data.name).task
        return Aim(task.kind, len(task.outputs), f"the dataset {config.data.name}")
    if "head" in config.trainable:
        return Aim("binary", 2, "assumed, as the dataset is not prepared here: a head of 2 classes")
    return Aim("lm", 0, "assumed, as the dataset is not prepared here: a language model")


def lower(config: ConfigDict, aim: Aim, mesh: Mesh) -> tuple[jax.stages.Lowered, dict[str, int]]:
    """Returns the step of a config for a mesh, traced, and the bytes of its arguments on a device by kind.

    Raises:
      UserError: what `model_shape`, `abstract` and `partition.split` raise.
    """
    definition, state = abstract(config, model_shape(config), aim.labels, mesh)
    weights = (1.0,) * aim.labels if config.class_weights and aim.kind in ("binary", "multiclass") else ()
    objective = Objective(aim.kind, tuple(config.active), weights, config.loss_chunk)
    step, state, frozen, _ = make_update(config, nnx.merge(definition, state), objective, _UPDATES, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = _batch(config, aim, mesh)
    kinds = {"base": 0, "adapters and head": 0, "optimizer": 0, "batch": 0}
    for path, leaf in [*nnx.to_flat_state(state.params), *nnx.to_flat_state(frozen)]:
        kinds["base" if partition.partition_of(path) == "base" else "adapters and head"] += device_bytes(leaf)
    kinds["optimizer"], kinds["batch"] = device_bytes(state.optimizer), device_bytes(batch)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    return step.lower(state, frozen, batch, key), kinds


def compiled(config: ConfigDict, aim: Aim, mesh: Mesh) -> Program:
    """Returns the step of a config, compiled for a mesh.

    Raises:
      TooLarge: the compiler says that the program does not fit the devices' memory.
      UserError: what `lower` raises.
    """
    start = time.perf_counter()
    lowered, kinds = lower(config, aim, mesh)
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = _too_large(str(error))
        if found is None:
            raise
        raise TooLarge(*found) from None
    seconds = time.perf_counter() - start
    memory = done.memory_analysis()
    return Program(
        kinds,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.generated_code_size_in_bytes,
        done.as_text(),
        seconds,
        done.cost_analysis()["flops"],
    )


def _batch(config: ConfigDict, aim: Aim, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch, as `Batches` makes them."""
    rows, length = config.batch_size, row_length(config.data.length, virtual_tokens(config))
    notes = max_segments(length)
    shapes = {name: ((rows, length), jnp.int32) for name in ("tokens", "segments", "positions")}
    shapes["notes"] = (rows, notes), jnp.int32
    if aim.kind in ANNOTATED:
        shapes["labels"] = ((rows, length) if aim.kind == "tokens" else (rows, notes, 2)), jnp.int32
    elif aim.kind == "multilabel":
        shapes["labels"] = (rows, notes, aim.labels), jnp.float32
    elif aim.labels:
        shapes["labels"] = (rows, notes), jnp.int32
    sharding = NamedSharding(mesh, P(BATCH))
    return {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}


_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+)([BKMGT]?)"
_OVERFLOWS = (
    rf"Used {_NUMBER} of {_NUMBER} hbm",
    rf"\({_NUMBER}\) exceeds available HBM \({_NUMBER}\)",
)


def _too_large(message: str) -> tuple[float, float] | None:
    """(needed, limit) in bytes of the compiler's message that a program is too large, None for another message."""
    for pattern in _OVERFLOWS if "RESOURCE_EXHAUSTED" in message else ():
        found = re.search(pattern, message)
        if found:
            needed, unit, limit, unit_of_limit = found.groups()
            return float(needed) * _UNITS[unit], float(limit) * _UNITS[unit_of_limit]
    return None
