"""Ventilation in CareVue, the older of the two systems in MIMIC-III, which charts settings and never a duration.

The rule of mimic-code (`ventilation_classification` and `ventilation_durations`, Johnson et al., JAMIA 2018): a
setting of the ventilator starts an episode, settings within 8 hours go on with it, and extubation or another oxygen
device ends it. An episode lasts from its first to its last row; one of a single time is no episode.
"""

from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from jaxlora.data import tables
from jaxlora.data.mimic import Ventilation, identifier, moment, optional

GAP = timedelta(hours=8)
_EPOCH = datetime(1800, 1, 1)

_VENTILATOR_TYPE, _OXYGEN_DEVICE, _EXTUBATION = "720", "467", "640"
_SETTINGS = (
    "445 448 449 450 1340 1486 1600 "  # minute volume
    "639 654 681 682 683 684 "  # tidal volume
    "218 436 535 444 "  # respiratory pressures
    "221 1 1211 1655 2000 "  # inspiratory pressure
    "543 5865 5866 "  # plateau pressure, APRV pressure
    "60 437 505 506 686 "  # PEEP
    "3459 501 502 503 "  # high-pressure relief, PCV
    "223 667 668 669 670 671 672"  # TCPCV
).split()
_EXTUBATED = {"extubated", "self extubation"}
_OTHER_DEVICES = {
    *("cannula", "nasal cannula", "face tent", "aerosol-cool", "trach mask", "hi flow neb", "non-rebreather"),
    *("venti mask", "medium conc mask", "vapotherm", "t-piece", "hood", "hut", "transtrachealcat", "heated neb"),
    "ultrasonic neb",
}
_ITEMS = (_VENTILATOR_TYPE, _OXYGEN_DEVICE, _EXTUBATION, *_SETTINGS)
_VENTILATED, _OXYGEN, _OUT = 1, 2, 4


def episodes(path: Path) -> Iterator[Ventilation]:
    """Yields the episodes of ventilation in CHARTEVENTS, which is streamed: only times are kept, a few bytes each.

    Args:
      path: of CHARTEVENTS, 330 million rows in the full release.

    Raises:
      UserError: the table is malformed.
    """
    columns = ("HADM_ID", "ICUSTAY_ID", "ITEMID", "CHARTTIME", "VALUE", "ERROR")
    charted: dict[tuple[str, str], array] = {}  # admission, stay -> eight times the second, plus what it tells
    for number, row in tables.rows(path, columns, keep={"ITEMID": _ITEMS}):
        key = (optional(row["HADM_ID"]), optional(row["ICUSTAY_ID"]))
        if None in key or identifier(row["ERROR"] or "") == "1":
            continue
        meaning = _meaning(identifier(row["ITEMID"] or ""), row["VALUE"])
        if meaning:
            second = round((moment(path, row, "CHARTTIME", number) - _EPOCH).total_seconds())
            charted.setdefault(key, array("q")).append(second * 8 + meaning)
    for (admission, stay), events in charted.items():
        for start, end in _episodes(events):
            yield Ventilation(admission, stay, start, end)


def _meaning(item: str, value: str | None) -> int:
    if value is None:
        return 0
    value = value.strip().lower()
    if item == _EXTUBATION:
        return _OUT if value in _EXTUBATED else 0
    if item == _OXYGEN_DEVICE:
        return _VENTILATED if value == "ventilator" else _OXYGEN if value in _OTHER_DEVICES else 0
    if item == _VENTILATOR_TYPE:
        return 0 if value == "other/remarks" else _VENTILATED
    return _VENTILATED


def _episodes(events: array) -> Iterator[tuple[datetime, datetime]]:
    """Yields begin and end of the episodes of one stay."""
    times: dict[int, int] = {}
    for event in sorted(events):
        times[event // 8] = times.get(event // 8, 0) | event % 8
    gap = GAP.total_seconds()
    start = end = last = None
    ventilated = False  # an extubation alone is no episode
    new = False
    for time, meaning in times.items():
        if meaning & _OXYGEN and not meaning & _VENTILATED:
            new = True  # on another device
        if not meaning & (_VENTILATED | _OUT):
            continue
        if meaning & _VENTILATED and last is not None and time - last > gap:
            new = True
        if new or start is None:
            if ventilated and end > start:
                yield _moment(start), _moment(end)
            start, ventilated = time, False
        end = time
        ventilated = ventilated or bool(meaning & _VENTILATED)
        last = time if meaning & _VENTILATED else last
        new = bool(meaning & _OUT)
    if ventilated and end > start:
        yield _moment(start), _moment(end)


def _moment(second: int) -> datetime:
    return _EPOCH + timedelta(seconds=second)
