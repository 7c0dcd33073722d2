"""The device mesh and where each array lies on it.

The mesh axes are `data`, `fsdp` and `tensor`. Every parameter has logical axes, and one table (`config.mesh.rules`)
says which mesh axis a logical axis is laid over. An adapter follows its kernel: A is cut along the kernel's input, B
along its output, and the rank is whole everywhere.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlora.errors import UserError
from jaxlora.mesh_rules import MESH_AXES, RULES, check_rules, mesh_axes
from jaxlora.models.layout import BATCH

_KERNELS = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
    "query": ("embed", "heads"),
    "key": ("embed", "heads"),
    "value": ("embed", "heads"),
    "attention_output": ("heads", "embed"),
    "intermediate": ("embed", "mlp"),
    "output": ("mlp", "embed"),
}


def start_distributed() -> None:
    """Initialises `jax.distributed` where the environment has several hosts: TPU VMs, which `launch/attach.sh` tells
    with JAXLORA_DISTRIBUTED=1 and a GKE slice with TPU_WORKER_HOSTNAMES, or a coordinator given in
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    if jax.distributed.is_initialized():
        return
    # JAX would take SIGTERM for itself and let a process that is loading its model go on; `termination.py` hears it.
    jax.config.update("jax_enable_preemption_service", False)
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif len(hosts) > 1 or os.environ.get("JAXLORA_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def make_mesh(fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of the devices: `fsdp` by `tensor`, the rest `data`.

    Args:
      devices: None is all there are.

    Raises:
      UserError: the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or tensor < 1 or count % (fsdp * tensor):
        if tensor < 1 or count % tensor:
            remedy = f"tensor {_around(tensor, divisors(count))}"
        else:
            remedy = f"fsdp {_around(fsdp, divisors(count // tensor))}"
        raise UserError(
            f"config.mesh: {count} devices cannot be laid out as fsdp {fsdp} by tensor {tensor}; give {remedy}"
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp, tensor), MESH_AXES)


def check_batch(mesh: Mesh, rows: int, accumulate: int) -> None:
    """Checks that the rows of an update divide by the devices that share them out, and by the parts of an update.

    Raises:
      UserError: they do not; the message gives the numbers of rows next to theirs that do.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if accumulate < 1:
        raise UserError(f"config.accumulate is {accumulate}; it must be 1 or more")
    unit = data * fsdp * accumulate
    if rows < 1 or rows % unit:
        parts = f" by {accumulate} of config.accumulate" if accumulate > 1 else ""
        few = rows // unit * unit
        raise UserError(
            f"config.batch_size is {rows}; it must be a multiple of {unit}, the {data} data by {fsdp} fsdp devices"
            f"{parts}: give {_around(rows, (few, few + unit) if few > 0 else (unit,))}"
        )


def divisors(count: int) -> list[int]:
    """Returns the divisors of a number, from 1."""
    return [n for n in range(1, count + 1) if count % n == 0]


def _around(wanted: int, valid: Iterable[int]) -> str:
    """The valid numbers next to the one wanted, below and above."""
    below, above = [n for n in valid if n <= wanted], [n for n in valid if n > wanted]
    return " or ".join(str(n) for n in [*below[-1:], *above[:1]])


def logical_axes(path: tuple[str, ...], ndim: int) -> tuple[str | None, ...]:
    """Returns the logical axes of the parameter at `path`."""
    if path[0] == "blocks":
        if path[1] not in _KERNELS:  # a norm
            return "layers", None
        features_in, features_out = _KERNELS[path[1]]
        inner = {
            "kernel": (features_in, features_out),
            "codes": (features_in, features_out),
            "scales": (features_in, features_out),
            "bias": (features_out,),
            "a": (features_in, "rank"),
            "b": ("rank", features_out),
            "e": ("rank",),
            "magnitude": (features_out,),
            "gain_in": (features_in,),
            "gain_out": (features_out,),
        }
        return "layers", *inner[path[-1]]
    if path in (("embedding",), ("embedding", "word")):
        return "vocab", "embed"
    if path[0] == "lm_head":
        return "embed", "vocab"
    return (None,) * ndim


def shardings(mesh: Mesh, state: nnx.State, rules: Mapping[str, str] = RULES) -> dict[tuple[str, ...], NamedSharding]:
    """Returns the sharding of each parameter of `state` by path; an axis that does not divide is kept whole.

    Args:
      rules: the mesh axis of each logical axis, "" for none.

    Raises:
      UserError: `rules` names an axis that does not exist, or lays two dimensions of a parameter over one mesh axis.
    """
    check_rules(rules)
    result = {}
    for path, leaf in nnx.to_flat_state(state):
        axes = mesh_axes(logical_axes(path, len(leaf.shape)), rules)
        fits = [a if a and size % mesh.shape[a] == 0 else None for a, size in zip(axes, leaf.shape, strict=True)]
        result[path] = NamedSharding(mesh, P(*fits))
    return result


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def traced_on(mesh: Mesh, function: Callable) -> Callable:
    """Returns `function`, to be traced with the mesh at hand, so that the model can say where its activations lie."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of a batch that lie on this host's devices."""
    parts = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in parts for row in range(batch_size)[part]})


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Lays a batch over the `data` and `fsdp` devices. Every host gives its `own_rows`; the rest of its batch is not
    looked at."""
    sharding = NamedSharding(mesh, P(BATCH))
    return {name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__) for name, rows in batch.items()}
