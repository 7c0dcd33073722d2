"""Settings that fit, each compiled before it is told."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from jaxlora.plan.program import Program, TooLarge
from jaxlora.plan.setting import Estimate, Estimator, Setting


def cheapest(estimator: Estimator, given: Setting) -> list[Estimate]:
    """Returns the given setting and all others, the least time of an update first, and of equal times the least work;
    a base that is quantised only for the sake of the plan comes last, as it changes what is computed."""
    every = map(estimator.of, [given, *estimator.settings(given)])
    return sorted(every, key=lambda each: _cost(each, given))


def nearest_first(estimator: Estimator, given: Setting) -> list[Estimate]:
    """Returns the other settings, those that change the fewest fields of the given one first."""
    others = map(estimator.of, estimator.settings(given))
    return sorted(others, key=lambda each: (len(each.setting.changes(given)), *_cost(each, given)))


def _cost(each: Estimate, given: Setting) -> tuple:
    """What settings are ordered by, the cheapest first; the last three decide between equals."""
    own = each.setting
    return (
        own.quantize != given.quantize,
        each.bound.seconds,
        each.bound.compute,
        own.fsdp,
        own.accumulate,
        own.quantize,
    )


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A setting that does not fit: it needs `needed` bytes on a device."""

    estimate: Estimate
    needed: float


def fitting(
    estimates: Iterable[Estimate],
    limit: float,
    compile_: Callable[[Setting], Program],
    refused: list[Refusal],
    tries: int,
) -> Iterator[tuple[Estimate, Program]]:
    """Yields the settings that fit, in their order, with what the compiler made of them.

    A setting is not compiled where arithmetic alone puts it above the limit, nor where it puts it above one that the
    compiler found too large.

    Args:
      limit: bytes of a device. compile_: raises TooLarge.
      refused: settings that are known not to fit; those that turn out so are added.
      tries: compilations at most.
    """
    for estimate in estimates:
        if estimate.bytes > limit or any(estimate.bytes >= other.estimate.bytes for other in refused):
            continue
        if not tries:
            return
        tries -= 1
        try:
            program = compile_(estimate.setting)
        except TooLarge as error:
            refused.append(Refusal(estimate, error.needed))
            continue
        if program.total > limit:
            refused.append(Refusal(estimate, program.total))
        else:
            yield estimate, program
