"""Grouped-query attention: over packed rows, and of one new token over a cache.

Packed rows have one attention, `attend`, with three kernels behind it: JAX's splash attention on a TPU, cuDNN's flash
attention on an NVIDIA GPU, and what XLA compiles on any device. The first two make nothing that is as large as length
by length, neither scores nor a mask.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxlora.errors import UserError, one_of
from jaxlora.models.attention_xla import MASKED, attend_xla
from jaxlora.models.layout import BATCH

KERNELS = ("auto", "splash", "cudnn", "xla")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    window: int = 0,
    kernel: str = "auto",
    block: int = 512,
) -> jax.Array:
    """Causal attention that never crosses a segment.

    Args:
      q: `[batch, length, heads, head_dim]`.
      k, v: `[batch, length, kv_heads, head_dim]`; heads is a multiple of kv_heads.
      segments: `[batch, length]`, the number of the packed note a position belongs to; 0 is padding.
      window: how many positions a position sees, itself included; 0 is all.
      kernel: see `choose`. Where no mesh is traced for, as when text is generated, it is "xla" in any case, since a
        kernel of its own cannot be laid over devices that it does not know.
      block: positions in a block of splash at most.

    Returns:
      `[batch, length, heads, head_dim]`. A padding position gets something finite that is never read.

    Raises:
      UserError: what `choose` raises.
    """
    mesh = jax.sharding.get_abstract_mesh()
    chosen = "xla" if mesh.empty else choose(kernel, block, mesh.abstract_device, q.shape[-1], q.dtype.name)
    # The two modules take half a second to import, and few processes need them.
    if chosen == "splash":
        from jaxlora.models.attention_tpu import attend_splash

        return on_shards(functools.partial(attend_splash, window=window, block=block), q, k, v, segments)
    if chosen == "cudnn":
        from jaxlora.models.attention_gpu import attend_cudnn

        return on_shards(functools.partial(attend_cudnn, window=window), q, k, v, segments)
    if mesh.empty or mesh.size == 1:
        return attend_xla(q, k, v, segments, window)
    # Its loop over the blocks of all rows would have the rows brought together first.
    return on_shards(functools.partial(attend_xla, window=window), q, k, v, segments)


def choose(kernel: str, block: int, device: jax.Device | jax.sharding.AbstractDevice, head_dim: int, dtype: str) -> str:
    """Returns the kernel that packed rows get on a kind of device: "splash", "cudnn" or "xla".

    Args:
      kernel: "auto", or the name of one. "auto" is splash on TPU v4 and later (on v2 and v3 Pallas has no product of
        bfloat16 matrices), cuDNN on NVIDIA's Hopper and later in bfloat16 or float16 (the kernels for older GPUs know
        no packed rows), and else XLA.
      block: positions in a block of splash at most.

    Raises:
      UserError: the kernel does not exist or cannot run there, or the block is not a multiple of 128 or too large.
    """
    one_of("config.attention.kernel", kernel, KERNELS)
    if block < 128 or block % 128:
        raise UserError(f"config.attention.block is {block}; give a multiple of 128, such as 512")
    name = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "xla") if kernel == "auto" else kernel
    needed = _needed(name, device, head_dim, dtype)
    if needed and kernel != "auto":
        raise UserError(f"config.attention.kernel is {kernel!r}, which needs {needed}; give 'auto' or 'xla'")
    if needed:
        return "xla"
    room = 2048 if "v6" in device.device_kind else 1024  # what compiles; the kernel keeps its blocks in vector memory
    if name == "splash" and block > room:
        raise UserError(f"config.attention.block is {block}; on {device.device_kind} give at most {room}")
    return name


def _needed(kernel: str, device, head_dim: int, dtype: str) -> str:
    """Returns what a kernel misses, or ""."""
    if kernel == "splash" and (device.platform != "tpu" or device.device_kind in ("TPU v2", "TPU v3")):
        return f"a TPU v4 or later, not {device.device_kind}"
    if kernel == "cudnn":
        if device.platform != "gpu" or _compute_capability() < 9:
            return f"an NVIDIA GPU of the Hopper generation or later, not {device.device_kind}"
        if dtype not in ("bfloat16", "float16"):
            return f"config.dtype 'bfloat16', not {dtype!r}"
        if head_dim % 8 or head_dim > 256:
            return f"heads of a multiple of 8 up to 256, and this base's are {head_dim} wide"
    return ""


def _compute_capability() -> float:
    """Of the GPU at hand, e.g. 9.0 for Hopper; 0 where it is not NVIDIA's."""
    capability = str(jax.local_devices(backend="gpu")[0].compute_capability)
    return float(capability) if capability.replace(".", "").isdigit() else 0.0


def on_shards(kernel, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Calls `kernel(q, k, v, segments)` on every device of the mesh with its rows and its heads.

    Rows, or heads of keys, that the mesh axes do not divide are computed on all of the devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = BATCH if q.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    spec = P(rows, None, "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None)
    # Pallas does not say over which mesh axes its results vary, so shard_map cannot check it.
    sharded = jax.shard_map(kernel, in_specs=(spec, spec, spec, P(rows)), out_specs=spec, check_vma=False)
    return sharded(q, k, v, segments)


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of one new position a row over the cached ones.

    Args:
      q: `[batch, 1, heads, head_dim]`.
      k, v: `[batch, slots, kv_heads, head_dim]`, the new position's own among them.
      visible: bool `[batch, slots]`, at least one true in a row.

    Returns:
      `[batch, 1, heads, head_dim]`.
    """
    batch, _, heads, head_dim = q.shape
    q = (q * head_dim**-0.5).reshape(batch, k.shape[2], -1, head_dim)
    scores = jnp.einsum("BKGD,BSKD->BKGS", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, MASKED), axis=-1)
    return jnp.einsum("BKGS,BSKD->BKGD", weights.astype(v.dtype), v).reshape(batch, 1, heads, head_dim)
