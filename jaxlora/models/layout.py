"""Where activations lie on the mesh that a step is traced for; on no mesh, or on one device, nothing is said."""

import math

import jax
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # the mesh axes that share out the rows of a batch


def platform() -> str:
    """Returns what a step is traced for: "cpu", "gpu" or "tpu"."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Returns `x`, laid over the mesh axes given for its dimensions; those left out are whole on every device, and so
    is a dimension that its axes do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return x
    parts = [math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ())) for axis in axes]
    fits = [axis if size % n == 0 else None for axis, size, n in zip(axes, x.shape, parts, strict=False)]
    return jax.lax.with_sharding_constraint(x, P(*fits))
