"""What a run keeps on every device, by arithmetic: from the shapes of its arrays and where they lie."""

import math
from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.chips import GIB
from jaxlora.config import virtual_tokens
from jaxlora.data.loader import row_length
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.bases import Shape
from jaxlora.train.assemble import abstract, adapter_specs


def state_bytes(
    config: ConfigDict,
    shape: Shape,
    labels: int,
    mesh: Mesh,
    trainable: Sequence[str],
    members: int = 1,
) -> dict[str, int]:
    """Returns the bytes that each device holds between updates, and the gradients in them: by `base`, `adapters`,
    `head`, `gradients` and `optimizer` (AdamW's two moments, and as much again of an AdaLoRA, for its importance).

    Args:
      shape: that of `model_shape`. labels: of the head; 0 is none.
      trainable: patterns as in `config.trainable`; () trains nothing.
      members: runs that are trained together over one base.

    Raises:
      UserError: what `abstract` raises.
    """
    model = nnx.merge(*abstract(config, shape, labels, mesh))
    kinds = {"base": 0, "adapters": 0, "head": 0, "gradients": 0, "optimizer": 0}
    trained = partition.trainable_partitions(model, trainable) if trainable else ()
    specs = adapter_specs(config, shape.layers, shape.modules)
    adaptive = [f"adapter/{name}" for name, spec in specs.items() if isinstance(spec, AdaLoraSpec)]
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name = partition.partition_of(path)
        size = device_bytes(leaf) * (1 if name == "base" else members)
        kinds[name if name in ("base", "head") else "adapters"] += size
        if name in trained:
            kinds["gradients"] += size
            kinds["optimizer"] += (4 if name in adaptive else 2) * size
    return kinds


def activation_bytes(config: ConfigDict, shape: Shape, mesh: Mesh, loss_chunk: int = 0, members: int = 1) -> int:
    """Returns a lower bound of the activations on each device, in bytes: what the backward pass finds saved of every
    layer, and the float32 logits of one chunk with their gradient.

    Args:
      shape: that of `model_shape`, with the remat level.
      loss_chunk: positions whose logits exist at one time; 0 for a model with a head.
      members: runs that are trained together over one base.
    """
    rows = max(1, config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"] * max(1, config.accumulate)))
    length, tensor = row_length(config.data.length, virtual_tokens(config)), mesh.shape["tensor"]
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
    return members * rows * (length * shape.layers * of_layer * width + logits) // tensor


def device_bytes(tree) -> int:
    """Returns the bytes of arrays, or of their shapes, on each of their devices; four-bit numbers take half a byte."""
    leaves = jax.tree.leaves(tree)
    sizes = [math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves]
    return sum(n * jax.dtypes.itemsize_bits(leaf.dtype) // 8 for n, leaf in zip(sizes, leaves, strict=True))


def device_limit(device: jax.Device) -> int | None:
    """Returns the bytes of memory that a device of this process has; None where it does not tell, as a CPU does."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def in_gib(kinds: dict[str, int]) -> str:
    """Returns a sum of bytes by kind, for the user: "base 12.55 + adapters 0.02 = 12.57 GiB"."""
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in kinds.items() if size)
    return f"{parts} = {sum(kinds.values()) / GIB:.2f} GiB"
