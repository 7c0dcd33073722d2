"""Which devices a run takes, and over how many of them the frozen base is cut.

It is cut no finer than it must be to fit: without gradients a copy of it costs memory alone, and every cut is gathered
again in every layer, forward and backward.
"""

import contextlib
import os
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora.chips import GIB
from jaxlora.interop.huggingface import base_bytes
from jaxlora.train.assemble import model_shape
from jaxlora.train.memory import activation_bytes, device_limit, in_gib, state_bytes
from jaxlora.train.mesh import divisors, make_mesh
from jaxlora.workers import cores

_COPIES = 10**9  # bytes of the base on all cores together
SHARE = 0.1  # of a device's memory, for what no arithmetic sees: the program, gathered weights, fragments


def share_cores(base: str) -> None:
    """Makes every core of a CPU a device of its own, where the base is small enough to be held as often.

    The operations of a small model are too small to be shared out among cores; rows are not. Nothing is changed where
    JAX has started, where several hosts have, or where somebody said how many devices there are.

    Args:
      base: the Hugging Face directory.

    Raises:
      UserError: it has no weights.
    """
    told = jax.config.jax_num_cpu_devices >= 0 or "xla_force_host_platform_device_count" in os.getenv("XLA_FLAGS", "")
    if not told and not jax.distributed.is_initialized() and base_bytes(base) * cores() <= _COPIES:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", cores())


def lay_out(
    config: ConfigDict,
    labels: int,
    trainable: Sequence[str] = (),
    devices: Sequence[jax.Device] | None = None,
    limit: int | None = None,
    members: int = 1,
    report: Callable[[str], None] = lambda _: None,
) -> Mesh:
    """Returns the mesh of a config.

    With `config.mesh.fsdp` 0 the base is cut over as few devices as their memory allows, the rest is `data`. Where a
    device's memory is not known, as on a CPU, the base is not cut.

    Args:
      labels: number of labels of the head; 0 is none.
      trainable: what is trained; () for a run that only predicts.
      devices: None is all there are; of the cores of `share_cores`, as many as the rows of an update divide into.
      limit: bytes of a device; None asks the first of this process.
      members: runs that are trained together over one base.
      report: called with the choice of fsdp and its arithmetic, where there is one.

    Raises:
      UserError: what `make_mesh`, `model_shape` and `abstract` raise.
    """
    tensor = config.mesh.tensor
    ours = jax.config.jax_num_cpu_devices > 1 and "JAX_NUM_CPU_DEVICES" not in os.environ  # by `share_cores`
    if devices is None and ours and jax.process_count() == 1 and jax.default_backend() == "cpu":
        rows, cut = config.batch_size // max(1, config.accumulate), max(1, config.mesh.fsdp) * max(1, tensor)
        fitting = [n for n in range(cut, jax.device_count() + 1, cut) if rows % (n // max(1, tensor)) == 0]
        devices = jax.devices()[: max(fitting)] if fitting else None
    if config.mesh.fsdp:
        return make_mesh(config.mesh.fsdp, tensor, devices)
    mesh = make_mesh(1, tensor, devices)
    choices = divisors(mesh.shape["data"])
    limit = limit or device_limit(jax.local_devices()[0])
    if len(choices) == 1 or not limit:
        return mesh
    shape = model_shape(config)
    reserve = int(SHARE * limit)
    reserve += activation_bytes(config, shape, mesh, 0 if labels else config.loss_chunk, members)
    for fsdp in choices:
        mesh = make_mesh(fsdp, tensor, devices)
        kinds = {**state_bytes(config, shape, labels, mesh, trainable, members), "reserve": reserve}
        if sum(kinds.values()) <= limit:
            break
    verdict = "of" if sum(kinds.values()) <= limit else "more than"
    sides = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    report(f"mesh: {sides}; a device needs {in_gib(kinds)}, {verdict} the {limit / GIB:.2f} GiB it has")
    return mesh
