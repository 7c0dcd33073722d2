"""Attention over packed rows on a TPU: splash attention, the flash kernel in Pallas that comes with JAX."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

LANES = 128  # a block of the kernel is a multiple of it


def attend_splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int, block: int, interpret: bool = False
) -> jax.Array:
    """Causal attention within segments, on one device.

    Blocks that causality or the window masks whole are neither computed nor read; of segments the kernel sees the
    numbers alone. Nothing is as large as length by length. Keys and values are not repeated for their group of heads.
    What the backward pass needs, the output and the log-sums, is named "attention" for the remat policies.

    Args:
      q, k, v, segments, window: as in `attention.attend`.
      block: positions in a block of queries or keys at most, a multiple of 128.
      interpret: computes on any device, slowly, what a TPU would.

    Returns:
      As `q`.
    """
    length, heads, head_dim = q.shape[1:]
    room = -length % LANES  # behind the row, so that causality hides it

    def head_major(x):
        return jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    numbers = jnp.pad(segments, ((0, 0), (0, room)))
    kernel = _kernel(heads, length + room, window, block, interpret)
    of_rows = jax.vmap(kernel)(
        head_major(q * head_dim**-0.5), head_major(k), head_major(v), splash.SegmentIds(numbers, numbers)
    )
    return of_rows.transpose(0, 2, 1, 3)[:, :length]


def _kernel(heads: int, length: int, window: int, block: int, interpret: bool) -> splash.SplashAttentionKernel:
    side = max(n for n in range(LANES, max(block, LANES) + 1, LANES) if length % n == 0)
    square = (length, length)
    mask = masks.LocalMask(square, (window - 1, 0), 0) if window else masks.CausalMask(square)
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(side, side, side, side, side, side, use_fused_bwd_kernel=True),
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
