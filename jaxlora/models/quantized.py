"""Frozen kernels in 8 or 4 bits (QLoRA, Dettmers et al. 2023).

    W  ~  value(codes) * scales,  each scale shared by a tile of 64 weights along the input axis

  int8  codes: int8 [..., in, out], the weights over their scale, rounded
  nf4   codes: uint8 [..., in / 2, out], two to a byte, each the number of one of 16 quantiles of a normal distribution

with scales: bfloat16 [..., in / 64, out]; 8.25 and 4.25 bits a weight. The low bits of a byte are of the first half of
a tile, the high bits of the second, so that unpacking moves whole rows.

A kernel comes back in the dtype of the computation, layer by layer, and once more in the backward pass: nothing keeps
it in between, whatever else is kept for the backward pass. `qwix` makes the codes. Reading them is done here, to the
same bits: `qwix` reads nf4 by a gather, while a selection is fused into the matmul by XLA on a TPU.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlora.errors import UserError
from jaxlora.models.layout import constrain

PRECISIONS = ("int8", "nf4")
_TILE = 64

# Appendix E of Dettmers et al.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class QuantizedKernel(nnx.Module):
    """The kernel of a linear layer as codes and scales, stacked over the layers as the kernel is.

    Args:
      kernel: `[layers, in, out]`. precision: "int8" or "nf4".
      axes: the mesh axes that the kernel's inputs and outputs lie over when it is used.
    """

    def __init__(self, kernel: jax.Array, precision: str, axes: tuple[str | None, str | None] = (None, None)):
        codes, scales = quantize(kernel, precision)
        self.codes, self.scales, self.axes = nnx.Param(codes), nnx.Param(scales), axes

    def dense(self, dtype: jnp.dtype) -> jax.Array:
        """Returns the kernel, `[..., in, out]`."""
        return dequantize(self.codes[...], self.scales[...], dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x: [..., in]` times the kernel of one layer, `[..., out]`."""
        return _matmul(x, self.codes[...], self.scales[...], self.axes)


def quantize(kernel: jax.Array, precision: str) -> tuple[jax.Array, jax.Array]:
    """Returns (codes, scales) of `kernel: [..., in, out]`.

    Raises:
      UserError: qwix is not installed, or the kernel has an odd number of inputs.
    """
    try:
        import qwix
    except ImportError:
        raise UserError(f"config.quantize is {precision!r}, which needs qwix: pip install 'jaxlora[qlora]'") from None
    *layers, width, _ = kernel.shape
    tile = math.gcd(_TILE, width)
    if tile == 1:
        raise UserError(f"config.quantize: a layer of {width} inputs has no tiles; give config.quantize = ''")
    axes = range(kernel.ndim)
    found = qwix.quantize(
        kernel.astype(jnp.float32),
        jnp.int8 if precision == "int8" else precision,
        channelwise_axes=[axis for axis in axes if axis != len(layers)],
        tiled_axes={len(layers): tile},
        scale_dtype=jnp.bfloat16,
    )
    if precision == "int8":
        return found.qvalue, found.scale
    halves = _split(found.qvalue.astype(jnp.uint8), width // tile, 2)
    return _join(halves[..., 0, :, :] | halves[..., 1, :, :] << 4), found.scale


def dequantize(codes: jax.Array, scales: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns the kernel `[..., in, out]` of its codes and scales, computed in `dtype`."""
    tiles = _split(codes, scales.shape[-2])
    if codes.dtype == jnp.uint8:
        tiles = _nf4_values(jnp.concatenate([tiles & 15, tiles >> 4], axis=-2), dtype)
    return _join(tiles.astype(dtype) * scales.astype(dtype)[..., None, :])


def _nf4_values(codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The quantile of each code, chosen bit by bit."""
    values = [jnp.asarray(value, dtype) for value in _NF4]
    for bit in range(4):
        is_set = (codes >> bit & 1).astype(bool)
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul(x: jax.Array, codes: jax.Array, scales: jax.Array, axes: tuple[str | None, str | None]) -> jax.Array:
    return jnp.einsum("...I,IO->...O", x, _gathered(codes, scales, axes, x.dtype))


def _forward(x, codes, scales, axes):
    return _matmul(x, codes, scales, axes), (codes, scales)


def _backward(axes, kept, gradient):
    # The kernel is dequantised anew: kept, it would be the whole base in the dtype of the computation.
    kernel = _gathered(*kept, axes, gradient.dtype)
    return jnp.einsum("...O,IO->...I", gradient, kernel), None, None


_matmul.defvjp(_forward, _backward)


def _gathered(codes, scales, axes, dtype) -> jax.Array:
    """The kernel as it is used: what travels between the devices are its codes, and not the two or four times as many
    bytes that they become."""
    return dequantize(constrain(codes, *axes), constrain(scales, *axes), dtype)


def _split(rows: jax.Array, *tiles: int) -> jax.Array:
    """`[..., in, out]` to `[..., tiles, in / tiles, out]`."""
    *layers, _, out = rows.shape
    return rows.reshape(*layers, *tiles, -1, out)


def _join(tiles: jax.Array) -> jax.Array:
    """`[..., tiles, rows, out]` to `[..., in, out]`."""
    return tiles.reshape(*tiles.shape[:-3], -1, tiles.shape[-1])
