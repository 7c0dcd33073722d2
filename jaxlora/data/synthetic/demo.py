"""The generated cohort of the demo: five tables of MIMIC-III, short notes, uncompressed."""

import random
from datetime import datetime, timedelta
from pathlib import Path

from jaxlora import files
from jaxlora.data.synthetic import cohort, words
from jaxlora.data.synthetic.layout import MIMIC3

COLUMNS = {name: MIMIC3[name] for name in ("PATIENTS", "ADMISSIONS", "NOTEEVENTS", "DIAGNOSES_ICD", "PROCEDURES_ICD")}

_ETHNICITIES = ("WHITE", "BLACK/AFRICAN AMERICAN", "WHITE", "HISPANIC OR LATINO", "UNKNOWN/NOT SPECIFIED")


class _Tables:
    """The lines of the five tables, quoted as in the full release: text in quotes, numbers bare, nulls empty."""

    def __init__(self):
        self._lines = {name: [",".join(f'"{c}"' for c in columns.split())] for name, columns in COLUMNS.items()}

    def add(self, name: str, *cells: str | int | datetime | None) -> None:
        self._lines[name].append(",".join([str(len(self._lines[name])), *(_quoted(cell) for cell in cells)]))

    def write(self, folder: Path) -> None:
        for name, lines in self._lines.items():
            files.write(folder / f"{name}.csv", "\n".join(lines) + "\n")


def _quoted(cell: str | int | datetime | None) -> str:
    if isinstance(cell, str):
        return '"' + cell.replace('"', '""') + '"'
    return "" if cell is None else str(cell)


def write_mimic3(folder: str | Path, patients: int, seed: int) -> None:
    """Writes the five MIMIC-III tables that `prepare` reads, the same bytes for the same arguments.

    About one patient in five has several admissions, one admission in four ends in death, one patient in fifty is a
    newborn. Among the notes are addenda, flagged errors, repeated texts, notes without admission and with CRLF.

    Args:
      folder: where NOTEEVENTS.csv and the others are written.
      patients: how many.
      seed: of everything that is drawn.
    """
    rng = random.Random(seed)
    tables = _Tables()
    for number in range(patients):
        sex, age = rng.choice("MF"), min(max(round(rng.gauss(66, 14)), 19), 89)
        stays = cohort.stays(rng, 10000 + 7 * number, 100001 + 4 * number, sex, age, newborn=number % 50 == 49)
        _write_patient(tables, stays, sex, age)
        for stay in stays:
            _write_stay(tables, rng, stay)
            _write_notes(tables, rng, stay)
    tables.write(Path(folder))


def _write_patient(tables: _Tables, stays: list[cohort.Stay], sex: str, age: int) -> None:
    born = stays[0].admitted - timedelta(days=0 if stays[0].newborn else 365 * age + 100)
    death = f"{stays[-1].discharged}" if stays[-1].died else None
    tables.add("PATIENTS", stays[0].patient, sex, f"{born:%Y-%m-%d} 00:00:00", death, death, None, int(stays[-1].died))


def _write_stay(tables: _Tables, rng: random.Random, stay: cohort.Stay) -> None:
    tables.add(
        "ADMISSIONS",
        stay.patient,
        stay.admission,
        f"{stay.admitted}",
        f"{stay.discharged}",
        f"{stay.discharged}" if stay.died else None,
        "NEWBORN" if stay.newborn else rng.choices(("EMERGENCY", "URGENT", "ELECTIVE"), (80, 8, 12))[0],
        "EMERGENCY ROOM ADMIT",
        "DEAD/EXPIRED" if stay.died else rng.choice(("HOME", "SNF", "HOME HEALTH CARE")),
        rng.choice(("Medicare", "Private", "Medicaid")),
        rng.choice(("ENGL", None)),
        None,
        rng.choice(("MARRIED", "SINGLE", "WIDOWED")),
        _ETHNICITIES[stay.patient % len(_ETHNICITIES)],  # not drawn, so that the notes stay what they are
        None,
        None,
        stay.facts["complaint"].upper(),
        int(stay.died),
        1,
    )
    for table, codes in (("DIAGNOSES_ICD", stay.diagnoses), ("PROCEDURES_ICD", stay.procedures)):
        for number, code in enumerate(codes, start=1):
            tables.add(table, stay.patient, stay.admission, number, code)


def _write_notes(tables: _Tables, rng: random.Random, stay: cohort.Stay) -> None:
    def note(day: datetime, category: str, description: str, text: str, admission=stay.admission, error=None):
        timed = None if category == "Discharge summary" else f"{day}"
        caregiver = None if timed is None else 14000 + rng.randrange(9)
        text = text.replace("\n", "\r\n") if rng.random() < 0.02 else text
        date = f"{day:%Y-%m-%d} 00:00:00"
        tables.add(
            "NOTEEVENTS", stay.patient, admission, date, timed, timed, category, description, caregiver, error, text
        )

    summary = cohort.summary(stay, cohort.sections(rng, stay, tells=0.02))
    note(stay.discharged, "Discharge summary", "Report", summary)
    if rng.random() < 0.03:
        later = stay.discharged + timedelta(days=2)
        note(later, "Discharge summary", "Addendum", "Addendum:\nPt seen by PT, cleared. Med list reconciled.")
    if rng.random() < 0.02:
        note(stay.discharged + timedelta(days=1), "Discharge summary", "Report", summary)
    for _ in range(rng.randint(1, 2)):
        flagged = 1 if rng.random() < 0.02 else None
        text = cohort.fill(rng, rng.choice(words.NURSING), words.WORDS, stay.facts)
        note(stay.admitted + timedelta(hours=rng.randint(2, 40)), "Nursing/other", "Report", text, error=flagged)
    text = cohort.fill(rng, rng.choice(words.RADIOLOGY), words.WORDS, stay.facts)
    outpatient = rng.random() < 0.1
    note(stay.admitted, "Radiology", "CHEST (PORTABLE AP)", text, admission=None if outpatient else stay.admission)
