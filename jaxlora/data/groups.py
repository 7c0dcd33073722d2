"""Groups of patients for the evaluation by subgroup: sex, age band, ethnicity, insurance and type of admission.

What the tables say is put into a few coarse categories here, so that neither an age nor a cell leaves them. A cell that
says nothing, or that the patient did not say, gives no category (""); one that is none of those listed gives "other".

| attribute | category: what the cells of MIMIC-III and MIMIC-IV say |
|---|---|
| sex | female: F; male: M |
| age | 0-44, 45-64, 65-79, 80+ years at the admission; who is over 89 is in the last band |
| ethnicity | White: WHITE…, PORTUGUESE; Black: BLACK…; Hispanic: HISPANIC…, SOUTH AMERICAN; Asian: ASIAN…; other |
| insurance | Medicare, Medicaid, private, government; self-pay: SELF PAY, NO CHARGE; other |
| admission_type | emergency: EMERGENCY, … EMER.; urgent; elective: ELECTIVE, SURGICAL SAME DAY…; observation; other |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxlora.data import tables

Groups = dict[str, tuple[tuple[str, ...], np.ndarray]]

_AGES = ((45, "0-44"), (65, "45-64"), (80, "65-79"))
_UNSAID = ("UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED")
# The beginning of a cell, in capitals, and its category.
_BEGINNINGS = {
    "sex": {"F": "female", "M": "male"},
    "ethnicity": {
        "WHITE": "White",
        "PORTUGUESE": "White",
        "BLACK": "Black",
        "HISPANIC": "Hispanic",
        "SOUTH AMERICAN": "Hispanic",
        "ASIAN": "Asian",
    },
    "insurance": {
        "MEDICARE": "Medicare",
        "MEDICAID": "Medicaid",
        "PRIVATE": "private",
        "GOVERNMENT": "government",
        "SELF PAY": "self-pay",
        "NO CHARGE": "self-pay",
    },
    "admission_type": {
        "EMERGENCY": "emergency",
        "EW EMER": "emergency",
        "DIRECT EMER": "emergency",
        "URGENT": "urgent",
        "ELECTIVE": "elective",
        "SURGICAL SAME DAY": "elective",
        "EU OBSERVATION": "observation",
        "DIRECT OBSERVATION": "observation",
        "OBSERVATION": "observation",
        "AMBULATORY OBSERVATION": "observation",
    },
}


def category(attribute: str, cell: str | None) -> str:
    """Returns the category of a cell, or "" where it says nothing.

    Args:
      attribute: "sex", "ethnicity", "insurance" or "admission_type".
    """
    said = (cell or "").strip().upper()
    if not said or said.startswith(_UNSAID):
        return ""
    for beginning, name in _BEGINNINGS[attribute].items():
        if said.startswith(beginning):
            return name
    return "" if attribute == "sex" else "other"


def age_band(years: float) -> str:
    """Returns the band of an age."""
    return next((band for limit, band in _AGES if years < limit), "80+")


def present(path: Path, columns: Mapping[str, str]) -> dict[str, str]:
    """Returns those of some columns, by attribute, that a table has: groups are welcome, and no reason to refuse it."""
    header = {name.casefold() for name in tables.columns(path)}
    return {attribute: column for attribute, column in columns.items() if column.casefold() in header}


def encoded(rows: Sequence[Mapping[str, str]]) -> Groups:
    """Returns groups by attribute: the names of the categories, sorted, and int16 `[notes]`, the number of each note's
    category, -1 where it has none.

    Args:
      rows: by note, the category of each attribute that is known.
    """
    found: Groups = {}
    for attribute in sorted({name for row in rows for name in row}):
        names = sorted({row[attribute] for row in rows if row.get(attribute)})
        place = {name: number for number, name in enumerate(names)}
        codes = np.asarray([place.get(row.get(attribute, ""), -1) for row in rows], np.int16)
        found[attribute] = (tuple(names), codes)
    return found
