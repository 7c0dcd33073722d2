"""The tensors of a base written into the model's parameters, on their devices.

A tensor of a file is a kernel transposed, of one layer. It is turned, cast and, where the model asks for it, quantised
on the devices, and written into its stack there; so neither host nor devices ever hold more than the model itself and
one tensor.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxlora.models.quantized import dequantize, quantize

_SMALL = 50_000_000  # bytes, in float32, of a parameter that is stacked on the host

Path_ = tuple[str, ...]
Index = tuple[tuple[int | None, int | None], ...]


@dataclasses.dataclass(frozen=True)
class Target:
    """What the tensors of a file become: a parameter, or the codes and the scales of a quantised kernel.

    Attributes:
      names: the tensors, one a layer, or one alone.
      shape: of each of them, as the file has it.
      leaves: the (abstract) parameters by path. placed: where each of them lies.
      quantize: "int8", "nf4" or "".
    """

    names: list[str]
    shape: tuple[int, ...]
    leaves: Mapping[Path_, nnx.Variable]
    placed: Mapping[Path_, NamedSharding]
    quantize: str

    @property
    def path(self) -> Path_:
        """The path of the parameter, or of the codes."""
        return next(iter(self.leaves))

    @property
    def stacked(self) -> bool:
        """Whether each tensor is one layer of a stack."""
        return self.path[0] == "blocks"

    @property
    def transposed(self) -> bool:
        """Whether the file has the axes in the other order."""
        return self.path[0] != "embedding"

    @property
    def stored(self) -> NamedSharding:
        """Where the axes of one tensor of the file lie, so that each device reads what it will hold."""
        layer = _of_layer(self.placed[self.path]) if self.stacked else self.placed[self.path]
        axes = tuple(layer.spec)
        return NamedSharding(layer.mesh, PartitionSpec(*(axes[::-1] if self.transposed else axes)))


class Check(NamedTuple):
    """Of a tensor that was written: whether it is finite, and what quantising it changed, its relative error
    (Frobenius); 0 where it is not quantised."""

    finite: jax.Array | bool
    error: jax.Array | float


Shards = Iterable[tuple[str, Mapping[Index, np.ndarray]]]


def place(target: Target, shards: Shards, done: Callable[[str], None]) -> tuple[list[jax.Array], dict[str, Check]]:
    """Returns the values of the target's parameters, and a check of each tensor by name.

    Args:
      shards: each tensor's name and its slices that this host's devices hold, by `key` of their index, in the order of
        the target's names.
      done: called with the name of each tensor when it is on the devices.
    """
    small = math.prod(target.leaves[target.path].shape) * 4 <= _SMALL
    return (_on_host if small and not target.quantize else _on_devices)(target, shards, done)


def key(index: tuple[slice, ...]) -> Index:
    """Returns the index of a slice in a form that can be a dictionary's key."""
    return tuple((s.start, s.stop) for s in index)


def _on_devices(target: Target, shards: Shards, done: Callable) -> tuple[list[jax.Array], dict[str, Check]]:
    """Writes the tensors one by one into their stacks."""
    leaves, placed, checks = target.leaves.values(), tuple(target.placed[path] for path in target.leaves), {}
    dtype = jnp.dtype(target.leaves[target.path].dtype).name
    turn = _turn(target.transposed, dtype, target.quantize, tuple(map(_of_layer, placed)) if target.stacked else placed)
    values = [_zeros(p)(leaf.shape, leaf.dtype) for p, leaf in zip(placed, leaves, strict=True) if target.stacked]
    for name, parts in shards:  # without enumerate, which keeps what it gave last while the next tensor comes
        tensor = jax.make_array_from_callback(target.shape, target.stored, lambda index, parts=parts: parts[key(index)])
        new, checks[name] = turn(tensor)
        if target.stacked:
            values = [_insert(p)(v, n, len(checks) - 1) for p, v, n in zip(placed, values, new, strict=True)]
        else:
            values = new
        del parts, tensor, new  # these too would live on
        jax.block_until_ready(values)  # else the host would run ahead with every tensor in memory
        done(name)
    return values, checks


def _on_host(target: Target, shards: Shards, done: Callable) -> tuple[list[jax.Array], dict[str, Check]]:
    """Does the same for a small parameter, stacked here: nothing is compiled for it."""
    ((path, leaf),), layers, checks = target.leaves.items(), [], {}
    for name, parts in shards:
        checks[name] = Check(all(np.isfinite(part.astype(np.float32)).all() for part in parts.values()), 0.0)
        layers.append(parts)
        done(name)

    def shard(index):
        within = index[1:] if target.stacked else index
        at = key(within[::-1] if target.transposed else within)
        found = [(parts[at].T if target.transposed else parts[at]).astype(leaf.dtype) for parts in layers]
        return np.stack(found) if target.stacked else found[0]

    return [jax.make_array_from_callback(leaf.shape, target.placed[path], shard)], checks


def _of_layer(placed: NamedSharding) -> NamedSharding:
    """Where one layer of a stack lies."""
    return NamedSharding(placed.mesh, PartitionSpec(*placed.spec[1:]))


def _zeros(placed: NamedSharding) -> Callable:
    return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=placed)


@functools.lru_cache(maxsize=64)
def _turn(transposed: bool, dtype: str, quantized: str, placed: tuple[NamedSharding, ...]) -> Callable:
    """The program that gives (a tensor of the file as the model holds it, its check)."""

    def turn(tensor):
        finite, whole = jnp.isfinite(tensor).all(), tensor.T if transposed else tensor
        if not quantized:
            return [whole.astype(dtype)], Check(finite, 0.0)
        codes, scales = quantize(whole, quantized)
        exact = whole.astype(jnp.float32)
        lost = jnp.linalg.norm(dequantize(codes, scales, jnp.float32) - exact)
        return [codes, scales], Check(finite, lost / jnp.maximum(jnp.linalg.norm(exact), 1e-30))

    return jax.jit(turn, out_shardings=(list(placed), NamedSharding(placed[0].mesh, PartitionSpec())))


@functools.lru_cache(maxsize=64)
def _insert(placed: NamedSharding) -> Callable:
    """The program that writes one layer into its stack: (stack, layer's values, layer) → stack.

    Apart from `_turn`, since a CPU takes six times as long to transpose into a stack as to do one after the other.
    """

    def insert(stack, new, number):
        # As bits: bfloat16 itself a CPU computes in float32, the whole stack there and back for every layer.
        bits = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
        stack_bits, new_bits = (jax.lax.bitcast_convert_type(x, bits) for x in (stack, new))
        written = jax.lax.dynamic_update_index_in_dim(stack_bits, new_bits, number, axis=0)
        return jax.lax.bitcast_convert_type(written, stack.dtype)

    return jax.jit(insert, donate_argnums=0, out_shardings=placed)
