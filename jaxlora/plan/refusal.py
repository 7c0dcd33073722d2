"""What `train` checks before it loads a base and compiles for minutes: can the run fit its devices at all?"""

import dataclasses

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora.chips import CHIPS, GIB, generation_of
from jaxlora.errors import UserError
from jaxlora.models.bert import BertConfig
from jaxlora.partition import trains_base
from jaxlora.plan.program import Aim
from jaxlora.plan.search import nearest_first
from jaxlora.plan.setting import Estimator, setting_of
from jaxlora.train.assemble import model_shape
from jaxlora.train.memory import activation_bytes, device_limit, in_gib, state_bytes

_ROOM = 0.9  # of a device's memory, that a setting may take by arithmetic to be worth its compilation


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
    limit = limit or device_limit(mesh.local_devices[0])
    if not limit:
        return
    shape = model_shape(config)
    if shape.remat != "offload":  # which keeps its activations elsewhere
        shape = dataclasses.replace(shape, remat="full")
    kinds = state_bytes(config, shape, labels, mesh, config.trainable, members)
    kinds["activations"] = activation_bytes(config, shape, mesh, members=members)
    if sum(kinds.values()) <= limit:
        return
    remedy = _remedy(config, labels, mesh, limit, members)
    raise UserError(
        f"the run does not fit: a device needs at least {in_gib(kinds)} and has {limit / GIB:.2f}; {remedy}"
    )


def _remedy(config: ConfigDict, labels: int, mesh: Mesh, limit: int, members: int) -> str:
    generation = generation_of(mesh.devices.flat[0].device_kind)
    bert = isinstance(model_shape(config), BertConfig)
    if generation is None or bert:
        cut = "raise config.mesh.fsdp, or " if mesh.size > mesh.shape["fsdp"] else ""
        quantize = "" if bert or trains_base(config.trainable) else "config.quantize = 'int8', "
        return f"{cut}give {quantize}config.accumulate or a smaller config.batch_size"
    ask = f"jaxlora plan --config=... --topology={_slice(generation, mesh.devices.flat)}"
    if members == 1:
        given = setting_of(config, mesh.shape["fsdp"])
        aim = Aim("binary" if labels else "lm", labels, "")
        estimator = Estimator(config, aim, mesh.devices.flatten().tolist(), CHIPS[generation])
        for other in nearest_first(estimator, given):
            if other.bytes <= _ROOM * limit:
                flags = " ".join(other.setting.changes(given))
                return f"by arithmetic {flags} may fit; ask before: {ask} {flags}"
    return f"ask what does: {ask} --search"


def _slice(generation: str, devices) -> str:
    """The name of the slice that the devices are, or the placeholder of one that has no name."""
    sides = [max(each) + 1 for each in zip(*(device.coords for device in devices), strict=True)]
    flat = generation not in ("v4", "v5p")
    name = "x".join(map(str, sides[:2] if flat else sides))
    return f"{generation}:{name if name in CHIPS[generation].slices else '...'}"
