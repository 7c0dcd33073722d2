"""Generated ICU stays and their ventilation, and the label of the ventilation task that they were made to have."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from jaxlora.data.synthetic.cohort import Stay


@dataclass(frozen=True)
class IcuStay:
    """One ICU stay: `spans` are the times on the ventilator, in order; `left` is None where OUTTIME is missing."""

    id: int
    source: str
    unit: str
    entered: datetime
    left: datetime | None
    spans: tuple[tuple[datetime, datetime], ...]


@dataclass(frozen=True)
class Ventilation:
    """The ventilation of an admission: by ICU stay, the hours on the ventilator from the first hour of that stay.

    `label` is what the task must say: 1 where the first ICU stay with ventilation spans 7 days from its first start
    to its last end plus six hours, 0 where it spans 2 days, else None. `code` is a diagnosis that the admission gets.
    """

    label: int | None
    stays: tuple[tuple[tuple[int, int], ...], ...]
    code: str = ""

    @property
    def hours(self) -> int:
        """How long the ICU stays last together."""
        return sum(_length(spans) for spans in self.stays)


def _length(spans: tuple[tuple[int, int], ...]) -> int:
    return 12 + max((end for _, end in spans), default=24)


NONE = Ventilation(None, ((),))
# 7 days less the six hours are 162, 2 days less the six hours are 42; gaps count as ventilated.
QUIRKS = (
    Ventilation(1, (((0, 162),),)),
    Ventilation(0, (((1, 162),),)),
    Ventilation(1, (((0, 168),),)),
    Ventilation(1, (((2, 166),),)),
    Ventilation(0, (((3, 45),),)),
    Ventilation(None, (((3, 44),),)),
    Ventilation(1, (((0, 30), (60, 100), (150, 170)),)),
    Ventilation(0, (((0, 6), (40, 44)),)),
    Ventilation(0, (((0, 72),), ((0, 200),))),
    Ventilation(1, ((), ((0, 200),))),
    Ventilation(None, (((0, 10),), ((0, 200),))),
    Ventilation(None, (((0, 200),),), code="1480"),
    Ventilation(None, (((0, 5),),)),
)


def drawn(rng: random.Random, stay: Stay) -> Ventilation:
    """Returns the ventilation of a stay: the sicker, the likelier and the longer; never longer than the stay."""
    hours = int((stay.discharged - stay.admitted).total_seconds() // 3600) - 16
    if hours < 12 or rng.random() > 0.25 + 0.2 * stay.severity:
        return NONE
    end = min(max(round(rng.lognormvariate(4.2 + 0.4 * stay.severity, 0.8)), 6), hours)
    label = 1 if end >= 162 else 0 if end >= 42 else None
    if end > 60 and rng.random() < 0.2:
        gap = rng.randint(10, 20)
        first = rng.randint(10, end - gap - 10)
        return Ventilation(label, (((0, first), (first + gap, end)),))
    return Ventilation(label, (((0, end),),))


def icu_stays(rng: random.Random, stay: Stay, source: str, ventilation: Ventilation, first_id: int) -> list[IcuStay]:
    """Returns the ICU stays of an admission, one after the other from its third hour on.

    Args:
      rng: drawn from.
      stay: long enough for `ventilation`.
      source: the DBSOURCE of each.
      ventilation: what happens in them.
      first_id: of the ICU stays; the next one has the next number.
    """
    entered, result = stay.admitted + timedelta(hours=2), []
    for number, spans in enumerate(ventilation.stays):
        start = entered + timedelta(hours=1)
        left = start + timedelta(hours=_length(spans) - 8)
        times = tuple((start + timedelta(hours=a), start + timedelta(hours=b)) for a, b in spans)
        known = None if rng.random() < 0.01 else left
        unit = rng.choice(("MICU", "SICU", "CCU", "CSRU", "TSICU"))
        result.append(IcuStay(first_id + number, source, unit, entered, known, times))
        entered = left + timedelta(hours=3)
    return result
