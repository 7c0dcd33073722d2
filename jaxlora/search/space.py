"""What a search may set: `config.search.space`, pairs of a field and what it can be.

A field has values, `("adapters.downstream.rank", (2, 4, 8, 16))`, or a range of numbers, `("learning_rate", ("log",
1e-5, 1e-3))`, which is searched evenly in its logarithm, or `("uniform", 0.0, 0.2)`, evenly as it is. A range has no
grid.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxlora.config import default, field_of, flat
from jaxlora.errors import UserError, nearest

RANGES = ("log", "uniform")
# All trials have these: they are compared by one score.
_SHARED = ("data.name", "data.dir", "sweep", "search", "wandb", "keep")
_FORM = "give pairs such as ('learning_rate', ('log', 1e-5, 1e-3)) or ('adapters.downstream.rank', (2, 4, 8))"


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What one field of a config can be.

    Attributes:
      field: its dotted name.
      values: what it can be, numbers in their order; () for a range.
      low, high, log: of a range.
    """

    field: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def ordered(self) -> bool:
        """Whether near values are alike: numbers are, names are not."""
        return not self.values or all(_number(value) for value in self.values)

    def at(self, share: float) -> Any:
        """Returns the value at a share of the dimension, from 0 up to 1."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)

    def share(self, value: Any) -> float:
        """Returns where in the dimension a value lies, from 0 to 1: the inverse of `at`, values in the middle of
        theirs."""
        if self.values:
            return (self.values.index(value) + 0.5) / len(self.values)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def read_space(config: ConfigDict) -> tuple[Dimension, ...]:
    """Returns what `config.search.space` says.

    Raises:
      UserError: it is empty or of another form, names a field that does not exist or that all trials share, or gives
        one what it cannot be.
    """
    space = []
    for part in config.search.space:
        if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], str)):
            raise UserError(f"config.search.space: not pairs of a field and what it can be; {_FORM}")
        field, given = part
        if field in [dimension.field for dimension in space]:
            raise UserError(f"config.search.space has {field} twice; name it once")
        if field.split(".")[0] in _SHARED or field in _SHARED:
            raise UserError(f"config.search.space: {field} is the same for all trials, which one score compares")
        known = flat(config)
        if field not in known:
            raise UserError(f"config.search.space: no field {field!r}{nearest(field, known)}")
        if not isinstance(given, tuple | list) or not given:
            raise UserError(f"config.search.space: {field} has neither values nor a range; {_FORM}")
        space.append(_dimension(config, field, tuple(given)))
    if not space:
        raise UserError(f"config.search.space is empty; {_FORM}")
    for dimension in space:
        for value in dimension.values or (dimension.low, dimension.high):
            with_settings(config, {dimension.field: value})
    return tuple(space)


def _dimension(config: ConfigDict, field: str, given: tuple[Any, ...]) -> Dimension:
    if given[0] in RANGES and len(given) == 3 and _number(given[1]) and _number(given[2]):
        kind, low, high = given[0], float(given[1]), float(given[2])
        if not isinstance(field_of(config, field), float):
            raise UserError(f"config.search.space: {field} is no float, so it has no range; give its values")
        if not (low < high and math.isfinite(high - low)) or (kind == "log" and low <= 0):
            least = ", and positive for 'log'" if kind == "log" else ""
            raise UserError(f"config.search.space: {field} from {low:g} to {high:g}; give the smaller one first{least}")
        return Dimension(field, (), low, high, kind == "log")
    values = tuple(tuple(value) if isinstance(value, list) else value for value in given)
    if any(value in values[:number] for number, value in enumerate(values)):
        raise UserError(f"config.search.space: {field} has a value twice; name each once")
    found = Dimension(field, values)
    return Dimension(field, tuple(sorted(values))) if found.ordered else found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_settings(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of a trial's own `train` run.

    Raises:
      UserError: a field gets a value of another type.
    """
    trial = config.copy_and_resolve_references()
    trial.search, trial.sweep = default().search, ()
    for field, value in settings.items():
        try:
            trial.update_from_flattened_dict({field: value})
        except (TypeError, ValueError):
            raise UserError(f"config.search.space: {field} gets {value!r}, of another type") from None
    return trial


def size(space: Sequence[Dimension]) -> float:
    """Returns how many settings a space has, infinity where there is a range."""
    return math.prod(len(dimension.values) or math.inf for dimension in space)


def grid(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Returns every settings of a space of values, the last field's changing first.

    Raises:
      UserError: a field has a range.
    """
    for dimension in space:
        if not dimension.values:
            raise UserError(f"config.search.space: {dimension.field} has a range, and a grid needs values; name them")
    points = itertools.product(*(dimension.values for dimension in space))
    return [dict(zip([dimension.field for dimension in space], point, strict=True)) for point in points]
