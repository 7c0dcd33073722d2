"""A lower bound of the time of an update: no device computes, reads or receives faster than its chip can.

    compute   the FLOPs of the program (train/flops.py, with what is computed again) over the bfloat16 peak
    memory    the weights of the base, read once forward and once backward in every part of an update, over the
              memory's bandwidth; saved activations are left out
    links     the bytes of the collectives that a device must receive, over all of its chip's links at once

The three may run at the same time, so the bound is the largest of them, and not their sum. It is no forecast: a kernel
that waits, a link that is shared or a ring with an open end make an update longer, and nothing makes it shorter.
"""

import dataclasses

from jaxlora.chips import Chip


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of an update at the least: what each of the three takes alone."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The lower bound."""
        return max(self.compute, self.memory, self.links)

    @property
    def limit(self) -> str:
        """Which of the three it is."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def bound(chip: Chip, flops: float, read: float, received: float) -> Bound:
    """Returns the lower bound of an update.

    Args:
      chip: a device has its share of it: half, where a chip is two devices.
      flops: of one device. read: bytes of weights, one device. received: bytes by one device over the links.
    """
    share = chip.cores
    return Bound(flops * share / (chip.teraflops * 1e12), read * share / chip.hbm, received * share / chip.ici)
