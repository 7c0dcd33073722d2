"""What the readers of MIMIC-III and MIMIC-IV share: where a table lies, and what is taken from it.

Identifiers and codes stay the strings that the tables hold. A cell that a table cannot hold is an error that names
file, column and row, and never quotes it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from jaxlora.data import groups, tables
from jaxlora.errors import UserError

# Dates are shifted, by patient, to 2100-2200, and a patient's later admissions run on beyond; the birth of a patient
# over 89 lies 300 years before the first admission.
YEARS = range(1800, 2300)
_CODE = re.compile(r"[A-Za-z0-9]+")
_FOLDERS = re.compile(r"hosp|icu|note|\d+(\.\d+)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Admission:
    """One row of ADMISSIONS.

    Attributes:
      patient: SUBJECT_ID. newborn: whether this is the admission of a birth. died: whether in hospital.
      days: length of the stay; below zero when it ends before it begins, as those of organ donors may.
      admitted: when. donor: whether the reason given for the admission is an organ donation.
    """

    patient: str
    newborn: bool
    died: bool
    days: float
    admitted: datetime
    donor: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """One note of any category, for the corpora; `patient`, `admission` and `text` may be None."""

    id: str
    patient: str | None
    admission: str | None
    category: str
    text: str | None
    error: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the table that holds the discharge summaries.

    Attributes:
      order: what the summaries of an admission are ordered by. admission: HADM_ID.
      kind: "report", "addendum", or "" for what is not a discharge summary. error: whether a physician flagged it.
    """

    order: tuple
    admission: str | None
    kind: str
    error: bool
    text: str | None


@dataclass(frozen=True, slots=True)
class Ventilation:
    """One time span on a ventilator, in one ICU stay of one admission."""

    admission: str
    stay: str
    start: datetime
    end: datetime


class Release(Protocol):
    """One release of MIMIC in its folders; `mimic3.Mimic3` and `mimic4.Mimic4` are the two."""

    name: str
    ventilated: str

    def admissions(self) -> dict[str, Admission]:
        """Returns ADMISSIONS by HADM_ID."""

    def summaries(self) -> Iterator[Summary]:
        """Yields every row of the table that holds the discharge summaries, in file order."""

    def notes(self) -> Iterator[Note]:
        """Yields every note, in file order."""

    def codes(self, kind: str) -> Iterator[tuple[str, str, str]]:
        """Yields (admission, ICD code without its dot, "9" or "10") of "diagnoses" or "procedures", in file order."""

    def adults(self, admissions: Mapping[str, Admission]) -> dict[str, bool]:
        """Returns whether the patient was 18 or older when admitted, for the admissions of known patients."""

    def groups(self, admissions: Mapping[str, Admission]) -> dict[str, dict[str, str]]:
        """Returns what groups each admission is in, by attribute of `data/groups.py`, as far as the tables tell."""

    def ventilations(self) -> Iterator[Ventilation] | None:
        """Yields the spans on a ventilator; None when the tables that tell them are not there."""


def find(folder: str | Path, name: str, title: str, field: str) -> Path:
    """Returns the file of a table, `NAME.csv` or `NAME.csv.gz` in any case.

    Args:
      folder: where it lies, or above it: in `hosp`, `icu`, `note`, a version such as `2.2`, or two of these, nested.
        A file is found beside another one: `note/discharge.csv.gz` stands for its folder.
      name: of the table. title: of the release, for messages. field: of the config that gives the folder.

    Raises:
      UserError: the folder is missing, has no such table, or has it in two versions.
    """
    found = search(folder, name, field)
    if found is None:
        raise UserError(f"{folder}: no {name}.csv or {name}.csv.gz; copy the {title} table {name} there")
    return found


def search(folder: str | Path, name: str, field: str) -> Path | None:
    """Returns what `find` does, or None when the table is not there."""
    folder = Path(folder)
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set {field} to the folder of the tables")
    level = [folder]
    for _ in range(3):
        entries = [entry for place in level for entry in _entries(place)]
        names = (f"{name}.csv".lower(), f"{name}.csv.gz".lower())
        matches = [path for path in entries if path.name.lower() in names and path.is_file()]
        if len(matches) > 1:
            remedy = f"set {field} to one version, or keep one of them"
            raise UserError(f"{folder}: {len(matches)} files of the table {name}; {remedy}")
        if matches:
            return matches[0]
        level = [path for path in entries if _FOLDERS.fullmatch(path.name) and path.is_dir()]
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        raise UserError(f"{folder}: you may not read this folder; ask its owner, or change its permissions") from None


def identifier(cell: str) -> str:
    """Returns an identifier without the `.0` that tools leave on integer columns with empty cells."""
    return cell.strip().removesuffix(".0")


def optional(cell: str | None) -> str | None:
    """Returns an identifier, or None for an empty or blank cell."""
    return identifier(cell or "") or None


def admissions(path: Path, names: tuple[str, str, str, str, str, str], more: tuple[str, ...] = ()) -> Iterator[tuple]:
    """Yields the identifier, the admission and the cells of every row of ADMISSIONS.

    Args:
      path: of the table.
      names: the columns of the patient, the admission, its begin, its end, its type, and the death in hospital.
      more: columns whose cells are wanted beside these, and may be empty.

    Raises:
      UserError: one of the six cells is empty or not what such a column holds, or an admission comes twice.
    """
    seen = set()
    patient, id, begin, end, _, death = names
    for number, row in tables.rows(path, (*names, *more)):
        for column in names:
            required(path, row, column, number)
        admitted = moment(path, row, begin, number)
        stay = moment(path, row, end, number) - admitted
        died, days = flag(path, row, death, number), stay.total_seconds() / 86400
        name = identifier(row[id])
        if name in seen:
            raise UserError(f"{tables.where(path, id, number)}: an earlier row has it too; copy the table again")
        seen.add(name)
        yield name, Admission(identifier(row[patient]), False, died, days, admitted), row


def grouped(path: Path, id: str, columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns the groups that the rows of a table tell, by identifier; an attribute that is not told is left out.

    Args:
      path: of the table. id: the column of the identifier.
      columns: by attribute of `groups.category`; those that the table lacks are passed over.
    """
    columns = groups.present(path, columns)
    found = {}
    for number, row in tables.rows(path, (id, *columns.values())):
        told = {attribute: groups.category(attribute, row[column]) for attribute, column in columns.items()}
        found[identifier(required(path, row, id, number))] = {name: value for name, value in told.items() if value}
    return found


def with_patients(
    found: dict[str, dict[str, str]],
    admissions: Mapping[str, Admission],
    sexes: Mapping[str, Mapping[str, str]],
    ages: Mapping[str, int],
) -> dict[str, dict[str, str]]:
    """Returns the groups of each admission with those of its patient.

    Args:
      found: by admission. sexes: by patient, of `grouped`. ages: in years, by admission.
    """
    bands = {id: {"age": groups.age_band(age)} for id, age in ages.items()}
    return {id: found[id] | sexes.get(of.patient, {}) | bands.get(id, {}) for id, of in admissions.items()}


def order(path: Path, row: tables.Row, number: int, date: str, id: str) -> tuple[str, int]:
    """Returns what a summary is ordered by: its date, and its number in the table or else that of its row.

    Raises:
      UserError: the date is not a time, or the number too long.
    """
    if row[date] is not None:
        moment(path, row, date, number)
    return row[date] or "", whole(path, row, id, number) if (row[id] or "").isdecimal() else number


def required(path: Path, row: tables.Row, column: str, number: int) -> str:
    """Returns a cell.

    Raises:
      UserError: it is empty or blank.
    """
    if optional(row[column]) is None:
        raise UserError(f"{tables.where(path, column, number)}: empty; copy the table again")
    return row[column]


def whole(path: Path, row: tables.Row, column: str, number: int) -> int:
    """Returns the whole number in a cell.

    Raises:
      UserError: the cell is empty, or not a number of 18 digits at most.
    """
    value = identifier(required(path, row, column, number))
    if not value.isdecimal() or len(value) > 18:
        raise UserError(f"{tables.where(path, column, number)}: not a whole number; copy the table again")
    return int(value)


def code(path: Path, row: tables.Row, column: str, number: int) -> str | None:
    """Returns an ICD code without its dot, or None for an empty cell.

    Raises:
      UserError: it has something else than letters and digits; what it has could become the name of a label.
    """
    found = (row[column] or "").strip().replace(".", "", 1)
    if found and not _CODE.fullmatch(found):
        raise UserError(f"{tables.where(path, column, number)}: not an ICD code; copy the table again")
    return found or None


def flag(path: Path, row: tables.Row, column: str, number: int) -> bool:
    """Returns whether a cell is 1.

    Raises:
      UserError: it is neither 0 nor 1.
    """
    value = identifier(row[column] or "")
    if value not in ("0", "1"):
        raise UserError(f"{tables.where(path, column, number)}: neither 0 nor 1; copy the table again")
    return value == "1"


def moment(path: Path, row: tables.Row, column: str, number: int) -> datetime:
    """Returns the time in a cell.

    Raises:
      UserError: the cell is empty, is not an ISO time, or lies outside `YEARS`.
    """
    try:
        time = datetime.fromisoformat(required(path, row, column, number).strip())
    except ValueError:
        time = None
    where = tables.where(path, column, number)
    if time is None or time.tzinfo is not None:
        raise UserError(f"{where}: not a time like 2150-01-31 12:00:00; copy the table again")
    if time.year not in YEARS:
        raise UserError(f"{where}: a year outside {YEARS.start}-{YEARS.stop - 1}; copy the table again")
    return time
