"""What a run keeps on every device, by arithmetic: from the shapes of its arrays and where they lie.

The automatic choice of `fsdp` rests on it: the frozen base is cut no finer than it must be to fit, as every cut is
gathered again in every layer, forward and backward.
"""

import contextlib
import math
import os
from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.interop.huggingface import base_bytes
from jaxlora.models.llama import LlamaConfig
from jaxlora.train.assemble import abstract, model_shape
from jaxlora.train.mesh import divisors, make_mesh
from jaxlora.workers import cores

GIB = 2**30
_COPIES = 10**9  # bytes of the base on all cores together
_SHARE = 0.1  # of a device's memory, for what no arithmetic sees: the program, gathered weights, fragments


def state_bytes(model: nnx.Module, trainable: Sequence[str]) -> dict[str, int]:
    """Returns the bytes that each device holds between updates, and the gradients in them: by `base`, `adapters`,
    `head`, `gradients` and `optimizer` (AdamW's two moments).

    Args:
      model: its parameters are arrays, or their shapes, with shardings.
      trainable: patterns as in `config.trainable`; () trains nothing.
    """
    kinds = {"base": 0, "adapters": 0, "head": 0, "gradients": 0, "optimizer": 0}
    trained = partition.trainable_partitions(model, trainable) if trainable else ()
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        size, name = sum(map(_bytes, jax.tree.leaves(leaf))), partition.partition_of(path)
        kinds[name if name in ("base", "head") else "adapters"] += size
        if name in trained:
            kinds["gradients"] += size
            kinds["optimizer"] += 2 * size
    return kinds


def activation_bytes(shape: LlamaConfig, rows: int, length: int, loss_chunk: int) -> int:
    """Returns a lower bound of the activations on each device, in bytes: what the backward pass finds saved of every
    layer, and the float32 logits of one chunk with their gradient.

    Args:
      rows: on one device, in one part of an update.
      loss_chunk: positions whose logits exist at one time; 0 for a model with a head.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    of_attention = 2 * q + 2 * kv
    of_layer = {
        "full": shape.embed,
        "offload": 0,
        "save_qkv": shape.embed + of_attention,
        "save_dots": shape.embed + of_attention + 2 * shape.embed + 2 * shape.mlp,
        "none": shape.embed + of_attention + 2 * shape.embed + 3 * shape.mlp,
    }[shape.remat]
    width = 2 if shape.dtype == "bfloat16" else 4
    logits = 2 * 4 * min(loss_chunk, length) * shape.vocab
    return rows * (length * shape.layers * of_layer * width + logits)


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
) -> Mesh:
    """Returns the mesh of a config.

    With `config.mesh.fsdp` 0 the base is cut over as few devices as their memory allows, the rest is `data`; the choice
    is printed with its arithmetic. Where a device's memory is not known, as on a CPU, the base is not cut.

    Args:
      labels: number of labels of the head; 0 is none.
      trainable: what is trained; () for a run that only predicts.
      devices: None is all there are; of the cores of `share_cores`, as many as the rows of an update divide into.
      limit: bytes of a device; None asks the first of this process.
      members: runs that are trained together over one base.

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
    limit = limit or _limit()
    if len(choices) == 1 or not limit:
        return mesh
    shape = model_shape(config)
    rows = max(1, config.batch_size // (mesh.shape["data"] * max(1, config.accumulate)))
    activations = members * activation_bytes(shape, rows, config.data.length, 0 if labels else config.loss_chunk)
    reserve = activations + int(_SHARE * limit)
    for fsdp in choices:
        mesh = make_mesh(fsdp, tensor, devices)
        kinds = of_members(state_bytes(nnx.merge(*abstract(config, shape, labels, mesh)), trainable), members)
        if sum(kinds.values()) + reserve <= limit:
            break
    if jax.process_index() == 0:
        print(_arithmetic(mesh, kinds, reserve, limit))
    return mesh


def of_members(kinds: dict[str, int], members: int) -> dict[str, int]:
    """Returns the bytes of several runs over one base, of those of one."""
    return {name: size if name == "base" else members * size for name, size in kinds.items()}


def _arithmetic(mesh: Mesh, kinds: dict[str, int], reserve: int, limit: int) -> str:
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    needed = sum(kinds.values()) + reserve
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in {**kinds, "reserve": reserve}.items() if size)
    verdict = "of" if needed <= limit else "more than"
    return (
        f"mesh: data {data} x fsdp {fsdp} x tensor {tensor}; a device needs {parts} = {needed / GIB:.2f} GiB, "
        f"{verdict} the {limit / GIB:.2f} GiB it has"
    )


def _limit() -> int | None:
    """Bytes of memory that a device of this process has, where it tells."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def _bytes(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on each of its devices; four-bit numbers take half a byte."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
