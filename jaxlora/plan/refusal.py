"""What `train` checks before it loads a base and compiles for minutes: can the run fit its devices at all?"""

import dataclasses

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora.errors import UserError
from jaxlora.plan.chips import CHIPS, GIB
from jaxlora.train.assemble import abstract, model_shape
from jaxlora.train.memory import activation_bytes, of_members, state_bytes

_GENERATIONS = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def check_fits(config: ConfigDict, labels: int, mesh: Mesh, limit: int | None = None, members: int = 1) -> None:
    """Checks that a run is not larger than its devices' memory whatever the compiler does.

    Counted are base, adapters, head, gradients and optimizer, and the least activations that any remat level keeps.
    More is needed in fact; `jaxlora plan` says how much.

    Args:
      labels: number of labels of the head; 0 is none. mesh: of the run.
      limit: bytes of a device; None asks the first of this process, and checks nothing where it does not know.
      members: runs that are trained together over one base.

    Raises:
      UserError: it is larger; the message has the arithmetic and the command that finds what fits.
    """
    limit = limit or _limit(mesh)
    if not limit:
        return
    shape = model_shape(config)
    if shape.remat != "offload":  # which keeps its activations elsewhere
        shape = dataclasses.replace(shape, remat="full")
    kinds = of_members(state_bytes(nnx.merge(*abstract(config, shape, labels, mesh)), config.trainable), members)
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulate)
    kinds["activations"] = members * activation_bytes(shape, rows, config.data.length, 0) // mesh.shape["tensor"]
    needed = sum(kinds.values())
    if needed <= limit:
        return
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in kinds.items() if size)
    raise UserError(
        f"the run does not fit: a device needs at least {parts} = {needed / GIB:.2f} GiB and has {limit / GIB:.2f}; "
        f"{_remedy(mesh)}"
    )


def _limit(mesh: Mesh) -> int | None:
    stats = mesh.local_devices[0].memory_stats() if mesh.local_devices[0].platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def _remedy(mesh: Mesh) -> str:
    generation = _GENERATIONS.get(mesh.devices.flat[0].device_kind)
    if generation is None:
        cut = "raise config.mesh.fsdp, or " if mesh.size > mesh.shape["fsdp"] else ""
        return f"{cut}give config.quantize = 'int8', config.accumulate or a smaller config.batch_size"
    return f"ask what does: jaxlora plan --config=... --topology={_slice(generation, mesh.devices.flat)} --search"


def _slice(generation: str, devices) -> str:
    """The name of the slice that the devices are, or the placeholder of one that has no name."""
    sides = [max(each) + 1 for each in zip(*(device.coords for device in devices), strict=True)]
    flat = generation not in ("v4", "v5p")
    name = "x".join(map(str, sides[:2] if flat else sides))
    return f"{generation}:{name if name in CHIPS[generation].slices else '...'}"
