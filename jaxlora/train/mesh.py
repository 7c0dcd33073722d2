"""The device mesh and where each array lies on it.

The mesh axes are `data`, `fsdp` and `tensor`. Every parameter has logical axes, and one table says which mesh axis a
logical axis is laid over. An adapter follows its kernel: A is cut along the kernel's input, B along its output, and
the rank is whole everywhere.
"""

import os

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlora.errors import UserError

RULES = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    "rank": None,
    "labels": None,
}
BATCH = P(("data", "fsdp"))

_KERNELS = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
}


def start_distributed() -> None:
    """Initialises `jax.distributed` where the environment has several hosts: TPU VMs, which `launch/attach.sh` tells
    with JAXLORA_DISTRIBUTED=1 and a GKE slice with TPU_WORKER_HOSTNAMES, or a coordinator given in
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    if jax.distributed.is_initialized():
        return
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif len(hosts) > 1 or os.environ.get("JAXLORA_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def make_mesh(fsdp: int, tensor: int) -> Mesh:
    """Returns the mesh of all devices: `fsdp` by `tensor`, the rest `data`.

    Raises:
      UserError: the devices cannot be divided so.
    """
    devices = jax.devices()
    data, rest = divmod(len(devices), max(fsdp * tensor, 1))
    if fsdp < 1 or tensor < 1 or rest or not data:
        raise UserError(f"config.mesh: {len(devices)} devices cannot be laid out as fsdp {fsdp} by tensor {tensor}")
    return Mesh(np.asarray(devices).reshape(data, fsdp, tensor), ("data", "fsdp", "tensor"))


def logical_axes(path: tuple[str, ...], ndim: int) -> tuple[str | None, ...]:
    """Returns the logical axes of the parameter at `path`."""
    if path[0] == "blocks":
        if path[-1] == "scale":
            return "layers", None
        features_in, features_out = _KERNELS[path[1]]
        inner = {
            "kernel": (features_in, features_out),
            "bias": (features_out,),
            "a": (features_in, "rank"),
            "b": ("rank", features_out),
            "magnitude": (features_out,),
        }
        return "layers", *inner[path[-1]]
    if path[0] == "embedding":
        return "vocab", "embed"
    if path[0] == "lm_head":
        return "embed", "vocab"
    return (None,) * ndim


def shardings(mesh: Mesh, state: nnx.State) -> dict[tuple[str, ...], NamedSharding]:
    """Returns the sharding of each parameter of `state` by path; an axis that does not divide is kept whole."""
    result = {}
    for path, leaf in nnx.to_flat_state(state):
        axes = [RULES.get(axis) for axis in logical_axes(path, len(leaf.shape))]
        fits = [a if a and size % mesh.shape[a] == 0 else None for a, size in zip(axes, leaf.shape, strict=True)]
        result[path] = NamedSharding(mesh, P(*fits))
    return result


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Lays a batch over the `data` and `fsdp` devices. Every host makes the same batch and gives its part of it."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__) for name, rows in batch.items()}
