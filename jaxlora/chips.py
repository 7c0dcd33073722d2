"""The generations of TPU: what a chip holds and does, and the slices it comes in."""

import dataclasses
import math

from jaxlora.errors import UserError, nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation, as Google Cloud's pages on it have it; the memory is what libtpu's compiler lets a program use.

    Attributes:
      device_gib: usable memory of a JAX device. cores: JAX devices a chip, in what libtpu describes ahead of time: the
        two cores of a v2, v3 or v4 chip are devices of their own (a real v4 joins them to one, so a plan for it is on
        the safe side).
      teraflops: bfloat16 peak of a chip. hbm, ici: bytes/s of its memory, and of all its links to other chips in one
        direction.
      slices: its topologies.
      kinds: what JAX calls its devices. joined: a real chip is one device, whatever `cores` says.
    """

    device_gib: float
    cores: int
    teraflops: float
    hbm: float
    ici: float
    slices: tuple[str, ...]
    kinds: tuple[str, ...]
    joined: bool = True


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16"),
    "16x16x16",
)
CHIPS = {
    "v2": Chip(7.48, 2, 46, 700e9, 248e9, ("2x2", "4x4", "8x8", "8x16", "16x16"), ("TPU v2",), False),
    "v3": Chip(
        15.48, 2, 123, 900e9, 328e9, ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"), ("TPU v3",), False
    ),
    "v4": Chip(15.25, 2, 275, 1228e9, 300e9, _CUBES, ("TPU v4",)),
    "v5e": Chip(15.75, 1, 197, 819e9, 200e9, ("1x1", *_FLAT), ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(95.74, 1, 459, 2765e9, 600e9, _CUBES, ("TPU v5", "TPU v5p")),
    "v6e": Chip(31.25, 1, 918, 1640e9, 448e9, ("1x1", *_FLAT), ("TPU v6 lite", "TPU v6e")),
}


def generation_of(kind: str) -> str | None:
    """Returns the generation of what JAX calls a device, a key of `CHIPS`; None where it is of none of them."""
    return next((name for name, chip in CHIPS.items() if kind in chip.kinds), None)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A named TPU slice, such as `v5e:2x4`.

    Attributes:
      generation: a key of `CHIPS`. sides: chips along each side.
    """

    generation: str
    sides: tuple[int, ...]

    @property
    def name(self) -> str:
        """As `--topology` has it."""
        return f"{self.generation}:{'x'.join(map(str, self.sides))}"

    @property
    def chip(self) -> Chip:
        """What it is made of."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.sides)


def parse_slice(topology: str) -> Slice:
    """Returns the slice of a name.

    Raises:
      UserError: there is no such slice; the message lists those there are.
    """
    generation, _, sides = topology.partition(":")
    if generation not in CHIPS:
        raise UserError(
            f"--topology: no TPU {generation!r}{nearest(generation, CHIPS)}; give a generation of {', '.join(CHIPS)} "
            "and a slice of it, such as v5e:2x4"
        )
    if sides not in CHIPS[generation].slices:
        known = ", ".join(f"{generation}:{each}" for each in CHIPS[generation].slices)
        raise UserError(f"--topology: no slice {topology!r}; there are {known}")
    return Slice(generation, tuple(map(int, sides.split("x"))))
