"""Generated patients as the tables of MIMIC-III v1.4."""

import random
from datetime import datetime, timedelta

from jaxlora.data.synthetic import answers
from jaxlora.data.synthetic.icu import IcuStay
from jaxlora.data.synthetic.layout import Cell, Table
from jaxlora.data.synthetic.notes import Note
from jaxlora.data.synthetic.visits import Person, Visit

# Itemids of CHARTEVENTS: vital signs, and ventilator settings that only CareVue needs, for MetaVision has procedures.
_VITALS = {
    "carevue": ((211, "Heart Rate", 86, "BPM"), (618, "Respiratory Rate", 18, "BPM"), (646, "SpO2", 96, "%")),
    "metavision": ((220045, "Heart Rate", 86, "bpm"), (220210, "RR", 18, "insp/min"), (220277, "SpO2", 96, "%")),
}
_SETTINGS = ((720, "Drager", None), (682, "550", "ml/B"), (535, "24", "cmH2O"), (505, "5", "cmH2O"))
_LABS = (
    (50912, 1.2, "mg/dL"),
    (50971, 4.1, "mEq/L"),
    (51222, 10.8, "g/dL"),
    (51301, 9.6, "K/uL"),
    (50813, 2.0, "mmol/L"),
)
INVASIVE, NON_INVASIVE, EXTUBATION, LINE = 225792, 225794, 227194, 225204


def write(rng: random.Random, person: Person, tables: dict[str, Table], tally: answers.Tally) -> list[dict]:
    """Writes one patient to every table and returns the lines of the answer key.

    Args:
      rng: drawn from.
      person: the patient.
      tables: open, by name.
      tally: what is written is counted in it.
    """
    _patient(rng, person, tables["PATIENTS"])
    lines = []
    for visit in person.visits:
        _admission(rng, visit, tables["ADMISSIONS"])
        for name, kind, rows in (
            ("DIAGNOSES_ICD", "diag", visit.diagnoses),
            ("PROCEDURES_ICD", "proc", visit.procedures),
        ):
            for number, code in rows:
                tables[name].add(visit.stay.patient, visit.stay.admission, number, code)
            tally.codes.setdefault(kind, set()).update(code for _, code in rows if code)
        for note in visit.notes:
            tables["NOTEEVENTS"].add(*note_row(rng, note))
        for stay in visit.icu:
            _icu(rng, visit, stay, tables)
        _labs(rng, visit, tables["LABEVENTS"])
        found = tally.visit(visit, {mode: answers.categories(visit, mode) for mode in answers.MODES})
        lines.append({"admission": str(visit.stay.admission), "patient": str(visit.stay.patient), **found})
    return lines


def _patient(rng: random.Random, person: Person, table: Table) -> None:
    last = person.visits[-1].stay
    death = f"{last.discharged:%Y-%m-%d} 00:00:00" if last.died else None
    registered = death if death and rng.random() < 0.5 else None
    table.add(person.patient, person.sex, person.born, death, death, registered, int(last.died))


def _admission(rng: random.Random, visit: Visit, table: Table) -> None:
    stay = visit.stay
    emergency = stay.admitted - timedelta(hours=5) if visit.kind == "EMERGENCY" else None
    table.add(
        stay.patient,
        stay.admission,
        stay.admitted,
        stay.discharged,
        stay.discharged if stay.died else None,
        visit.kind,
        "EMERGENCY ROOM ADMIT" if emergency else "PHYS REFERRAL/NORMAL DELI",
        "DEAD/EXPIRED" if stay.died else rng.choice(("HOME", "SNF", "HOME HEALTH CARE", "REHAB/DISTINCT PART HOSP")),
        rng.choice(("Medicare", "Private", "Medicaid", "Government", "Self Pay")),
        rng.choice(("ENGL", "SPAN", None)),
        rng.choice(("CATHOLIC", "PROTESTANT QUAKER", "NOT SPECIFIED", None)),
        rng.choice(("MARRIED", "SINGLE", "WIDOWED", None)),
        rng.choice(("WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC OR LATINO", "UNKNOWN/NOT SPECIFIED")),
        emergency,
        emergency + timedelta(hours=4) if emergency else None,
        visit.title,
        int(stay.died),
        int(bool(visit.icu)),
    )


def note_row(rng: random.Random, note: Note) -> tuple[Cell, ...]:
    """Returns the cells of a row of NOTEEVENTS, but for its ROW_ID."""
    caregiver = 14000 + rng.randrange(900) if note.stored else None
    times = (note.day.replace(hour=0, minute=0, second=0), note.charted, note.stored)
    error = 1 if note.error else None
    return (note.patient, note.admission, *times, note.category, note.description, caregiver, error, note.text)


def _icu(rng: random.Random, visit: Visit, stay: IcuStay, tables: dict[str, Table]) -> None:
    ids = (visit.stay.patient, visit.stay.admission, stay.id)
    ward = rng.randrange(7, 60)
    days = round((stay.left - stay.entered).total_seconds() / 86400, 4) if stay.left else None
    where = (stay.unit, stay.unit, ward, ward)
    tables["ICUSTAYS"].add(*ids, stay.source, *where, stay.entered, stay.left, days)
    for item, _, level, unit in _VITALS[stay.source]:
        for hour in range(0, 12, 4):
            value = round(level * rng.uniform(0.85, 1.1))
            _chart(tables, ids, item, stay.entered + timedelta(hours=hour), str(value), value, unit)
    if stay.source == "carevue":
        for start, end in stay.spans:
            for time in _every_four_hours(start, end):
                for item, value, unit in _SETTINGS:
                    _chart(tables, ids, item, time, value, float(value) if value.isdecimal() else None, unit)
            _chart(tables, ids, 640, end, "Extubated", None, None)
        return
    _procedure(tables, ids, LINE, stay.entered, stay.entered + timedelta(hours=9), "Invasive Lines")
    for start, end in stay.spans:
        _procedure(tables, ids, INVASIVE, start, end, "Ventilation")
        _procedure(tables, ids, EXTUBATION, end, end + timedelta(minutes=1), "Intubation/Extubation")
    if stay.spans and rng.random() < 0.3:  # which is no ventilation as the task understands it
        last = stay.spans[-1][1]
        _procedure(tables, ids, NON_INVASIVE, last + timedelta(hours=1), last + timedelta(hours=4), "Ventilation")


def _every_four_hours(start: datetime, end: datetime) -> list[datetime]:
    times = [start + timedelta(hours=hour) for hour in range(0, int((end - start).total_seconds() // 3600), 4)]
    return [*times, end]


def _chart(tables: dict[str, Table], ids: tuple, item: int, time: datetime, value: str, number, unit) -> None:
    stored = time + timedelta(minutes=12)
    tables["CHARTEVENTS"].add(*ids, item, time, stored, 17000, value, number, unit, None, None, None, "NotStopd")


def _procedure(tables: dict[str, Table], ids: tuple, item: int, start: datetime, end: datetime, kind: str) -> None:
    minutes, order = (end - start) // timedelta(minutes=1), 5_000_000 + tables["PROCEDUREEVENTS_MV"].rows
    tables["PROCEDUREEVENTS_MV"].add(
        *ids, start, end, item, minutes, "min", None, None, end, 18000, order, order, kind, None, "Task", 1, 0, 0
    , "FinishedRunning", None, None, None)  # fmt: skip


def _labs(rng: random.Random, visit: Visit, table: Table) -> None:
    for item, level, unit in rng.sample(_LABS, 3):
        value = round(level * rng.uniform(0.5, 2), 1)
        time, flag = (
            visit.stay.admitted + timedelta(hours=rng.randrange(24)),
            "abnormal" if value > 1.5 * level else None,
        )
        table.add(visit.stay.patient, visit.stay.admission, item, time, str(value), value, unit, flag)
