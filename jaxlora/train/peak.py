"""The most matrix products that a run's devices could do: as their makers state it, or as measured here."""

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlora.chips import CHIPS, generation_of

# Dense bfloat16 FLOP/s of what JAX calls a device, where `CHIPS` does not have it; of TPU7x that is a core.
_STATED = {
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
}


class Peak(NamedTuple):
    """FLOP/s of all devices of a run, and whether that is `stated` or `measured`."""

    rate: float
    source: str


def peak_of(devices: Sequence[jax.Device], dtype: str) -> Peak:
    """Returns the peak of a run's devices.

    It is measured where none is stated: for kinds that are not in the table, and in float32, whose products a TPU or
    a GPU rounds as it is told. CPU devices of one process share its cores, and count once.
    """
    stated = _stated(devices[0].device_kind)
    if dtype == "bfloat16" and stated:
        return Peak(stated * len(devices), "stated")
    local = next(device for device in devices if device.process_index == jax.process_index())
    count = len({d.process_index for d in devices}) if local.platform == "cpu" else len(devices)
    return Peak(measured_rate(local, dtype) * count, "measured")


def _stated(kind: str) -> float | None:
    """FLOP/s of one device as its maker states it, or None."""
    if generation := generation_of(kind):
        chip = CHIPS[generation]
        return chip.teraflops * 1e12 / (1 if chip.joined else chip.cores)
    return _STATED.get(kind)


@functools.cache
def measured_rate(device: jax.Device, dtype: str) -> float:
    """Returns the FLOP/s of a square matrix product on one device, the best of a few; it takes less than a second."""
    size, product = 512, jax.jit(jnp.matmul)
    while True:
        size *= 2
        tile = np.random.default_rng(0).standard_normal((1024, 1024), np.float32) / 32
        x = jax.device_put(np.tile(tile, (size // 1024, size // 1024)).astype(dtype), device)
        seconds = min(_seconds(product, x) for _ in range(4))  # the first compiles
        if seconds > 0.005 or size == 8192:
            return 2 * size**3 / seconds


def _seconds(product, x: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(product(x, x))
    return time.perf_counter() - start
