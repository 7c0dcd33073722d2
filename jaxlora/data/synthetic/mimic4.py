"""Generated patients as the tables of MIMIC-IV 2.2 or 3.1 and MIMIC-IV-Note 2.2.

Against MIMIC-III: one mark `___` for all that was removed, discharge summaries and radiology reports only, no flagged
notes and no newborns, ICD-9 and ICD-10 in the same columns, and a date of death only up to a year after the discharge.
"""

import random
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

from jaxlora.data.synthetic import answers, codes
from jaxlora.data.synthetic.icu import IcuStay
from jaxlora.data.synthetic.layout import Table
from jaxlora.data.synthetic.mimic3 import EXTUBATION, INVASIVE, LINE, NON_INVASIVE
from jaxlora.data.synthetic.notes import SUMMARY, Note
from jaxlora.data.synthetic.visits import Person, Visit

_MARK = re.compile(r"\[\*\*.*?\*\*\]", re.DOTALL)
_EMPTY_LINE = re.compile(r"\n(?=\n)")
_UNITS = {
    "MICU": "Medical Intensive Care Unit (MICU)",
    "SICU": "Surgical Intensive Care Unit (SICU)",
    "CCU": "Coronary Care Unit (CCU)",
    "CSRU": "Cardiac Vascular Intensive Care Unit (CVICU)",
    "TSICU": "Trauma SICU (TSICU)",
}
_VITALS = ((220045, 86, "bpm"), (220210, 18, "insp/min"), (220277, 96, "%"))
_TYPES = {"EMERGENCY": "EW EMER.", "URGENT": "URGENT", "ELECTIVE": "SURGICAL SAME DAY ADMISSION"}


def write(rng: random.Random, person: Person, tables: dict[str, Table], tally: answers.Tally) -> list[dict]:
    """Writes one patient to every table and returns the lines of the answer key.

    Args:
      rng: drawn from.
      person: the patient, who was made for MIMIC-IV.
      tables: open, by name.
      tally: what is written is counted in it.
    """
    _patient(rng, person, tables["hosp/patients"])
    notes, lines = _Notes(rng, person.patient, tables), []
    for visit in person.visits:
        visit = replace(visit, notes=[_note(note) for note in visit.notes if note.category in (SUMMARY, "Radiology")])
        provider = f"P{rng.randrange(10**5):05}"
        _admission(rng, visit, provider, tables["hosp/admissions"])
        versions = _versions(rng, visit)
        coded = _codes(visit, versions, tables)
        for note in visit.notes:
            notes.add(note)
        for stay in visit.icu:
            _icu(rng, visit, stay, tables)
        found = tally.visit(visit, coded, only_summaries=True)
        lines.append({"admission": str(visit.stay.admission), "patient": str(visit.stay.patient), **found})
    return lines


def _versions(rng: random.Random, visit: Visit) -> tuple[int, int]:
    """The ICD version of the first code of an admission and of the others: nearly always the same one."""
    version = rng.choice((9, 10))
    return (19 - version, version) if rng.random() < 0.02 or visit.stay.patient % 70 == 0 else (version, version)


def _codes(visit: Visit, versions: tuple[int, int], tables: dict[str, Table]) -> dict[str, dict[str, list[str]]]:
    """Writes the codes of an admission and returns its categories by mode, and by kind and version."""
    ids = (visit.stay.patient, visit.stay.admission)
    names = ("diag9", "diag10", "proc9", "proc10")
    result = {mode: {name: {} for name in names} for mode in answers.MODES}
    for kind, rows in (("diag", visit.diagnoses), ("proc", visit.procedures)):
        for index, (number, code) in enumerate(rows):
            if number is None or code is None:  # MIMIC-IV has neither
                continue
            version = versions[index > 0]
            if version == 10:
                code = codes.icd10(code) if kind == "diag" else codes.icd10_procedure(code)
            if kind == "diag":
                tables["hosp/diagnoses_icd"].add(*ids, number, code, version)
            else:
                tables["hosp/procedures_icd"].add(*ids, number, visit.stay.admitted.date(), code, version)
            for mode, found in result.items():
                found[f"{kind}{version}"][codes.CUTS[mode][kind](code) if version == 9 else code[:3]] = None
    return {mode: {name: list(each) for name, each in found.items()} for mode, found in result.items()}


def _note(note: Note) -> Note:
    """The note as MIMIC-IV has it: one mark for all that was removed, and a blank in every empty line."""
    return replace(note, error=False, text=_EMPTY_LINE.sub("\n ", _MARK.sub("___", note.text)))


class _Notes:
    """The notes of one patient: they are numbered by type, and an addendum names the note it belongs to."""

    def __init__(self, rng: random.Random, patient: int, tables: dict[str, Table]):
        self._rng, self._patient, self._tables = rng, patient, tables
        self._numbers: Counter[str] = Counter({"DS": 19, "RR": 12})

    def add(self, note: Note) -> None:
        """Writes a note and its details."""
        table = "discharge" if note.category == SUMMARY else "radiology"
        kind = "RR" if table == "radiology" else "AD" if note.description == "Addendum" else "DS"
        self._numbers[kind] += 1
        number = self._numbers[kind]
        id = f"{self._patient}-{kind}-{number}"
        stored = note.day + timedelta(hours=self._rng.randint(1, 60))
        row = (id, self._patient, note.admission, kind, number, note.day, stored, note.text)
        self._tables[f"note/{table}"].add(*row)
        if kind == "DS":
            self._detail("discharge", id, "author", "___", 1)
        elif kind == "AD":
            self._detail("discharge", id, "addendum_note_id", f"{self._patient}-DS-{self._numbers['DS']}", 1)
        else:
            self._detail("radiology", id, "exam_name", note.description, 1)
            self._detail("radiology", id, "exam_code", f"C{self._rng.randrange(1, 99)}", 1)
            self._detail("radiology", id, "cpt_code", "71010", 1)

    def _detail(self, table: str, id: str, field: str, value: str, ordinal: int) -> None:
        self._tables[f"note/{table}_detail"].add(id, self._patient, field, value, ordinal)


def _patient(rng: random.Random, person: Person, table: Table) -> None:
    first, last = person.visits[0].stay, person.visits[-1].stay
    died = last.discharged if last.died else None
    if died is None and rng.random() < 0.15:
        died = last.discharged + timedelta(days=rng.randint(1, 365))
    year = first.admitted.year
    age = 91 if person.shifted else person.age
    group = f"{2008 + year % 4 * 3} - {2010 + year % 4 * 3}"
    table.add(person.patient, person.sex, age, year, group, died.date() if died else None)


def _admission(rng: random.Random, visit: Visit, provider: str, table: Table) -> None:
    stay = visit.stay
    emergency = stay.admitted - timedelta(hours=5) if visit.kind == "EMERGENCY" else None
    table.add(
        stay.patient,
        stay.admission,
        stay.admitted,
        stay.discharged,
        stay.discharged if stay.died else None,
        _TYPES[visit.kind],
        provider,
        "EMERGENCY ROOM" if emergency else "PHYSICIAN REFERRAL",
        "DIED" if stay.died else rng.choice(("HOME", "SKILLED NURSING FACILITY", "HOME HEALTH CARE", None)),
        rng.choice(("Medicare", "Medicaid", "Other")),
        rng.choice(("ENGLISH", "?")),
        rng.choice(("MARRIED", "SINGLE", "WIDOWED", None)),
        rng.choice(("WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC/LATINO - PUERTO RICAN", "UNKNOWN")),
        emergency,
        emergency + timedelta(hours=4) if emergency else None,
        int(stay.died),
    )


def _icu(rng: random.Random, visit: Visit, stay: IcuStay, tables: dict[str, Table]) -> None:
    ids, unit = (visit.stay.patient, visit.stay.admission, stay.id), _UNITS[stay.unit]
    days = (stay.left - stay.entered).total_seconds() / 86400 if stay.left else None
    tables["icu/icustays"].add(*ids, unit, unit, stay.entered, stay.left, days)
    for item, level, name in _VITALS:
        for hour in range(0, 12, 4):
            value, time = round(level * rng.uniform(0.85, 1.1)), stay.entered + timedelta(hours=hour)
            tables["icu/chartevents"].add(*ids, 47007, time, time, item, str(value), value, name, 0)
    weight = round(rng.gauss(80, 12), 1)
    _procedure(tables, ids, LINE, stay.entered, stay.entered + timedelta(hours=9), "Invasive Lines", weight)
    for start, end in stay.spans:
        _procedure(tables, ids, INVASIVE, start, end, "Ventilation", weight)
        _procedure(tables, ids, EXTUBATION, end, end + timedelta(minutes=1), "Intubation/Extubation", weight)
    if stay.spans and rng.random() < 0.3:
        last = stay.spans[-1][1]
        _procedure(
            tables, ids, NON_INVASIVE, last + timedelta(hours=1), last + timedelta(hours=4), "Ventilation", weight
        )


def _procedure(
    tables: dict[str, Table], ids: tuple, item: int, start: datetime, end: datetime, kind: str, weight: float
) -> None:
    minutes, order = (end - start) // timedelta(minutes=1), 5_000_000 + tables["icu/procedureevents"].rows
    place = (minutes, "min", None, None, order, order, kind, "Task")
    tables["icu/procedureevents"].add(
        *ids, 18000, start, end, end, item, *place, weight, 1, 0, "FinishedRunning", minutes, 0
    )
