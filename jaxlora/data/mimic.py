"""The tables of MIMIC-III v1.4 as they lie in their folder: `NAME.csv` or `NAME.csv.gz`, in either case."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jaxlora.data import tables
from jaxlora.errors import UserError


@dataclass(frozen=True)
class Admission:
    """One row of ADMISSIONS: who, whether newborn, whether the patient died in hospital, and the days of the stay."""

    patient: str
    newborn: bool
    died: bool
    days: float


def find(folder: str | Path, name: str) -> Path:
    """Returns the file of a table.

    Raises:
      UserError: the folder is missing, or has no such table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set mimic3 to the folder of the MIMIC-III tables")
    present = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    for suffix in (".csv", ".csv.gz"):
        if name.lower() + suffix in present:
            return present[name.lower() + suffix]
    raise UserError(f"{folder}: no {name}.csv or {name}.csv.gz; copy the MIMIC-III table {name} there")


def note_events(folder: str | Path, columns: Iterable[str]) -> Iterator[tuple[int, tables.Row]]:
    """Yields the rows of NOTEEVENTS, as `tables.rows` does; with no HADM_ID for out-patient notes."""
    for number, row in tables.rows(find(folder, "NOTEEVENTS"), columns):
        if row.get("HADM_ID"):
            row["HADM_ID"] = identifier(row["HADM_ID"])
        yield number, row


def admissions(folder: str | Path) -> dict[str, Admission]:
    """Returns ADMISSIONS by HADM_ID.

    Raises:
      UserError: the table is missing or a cell of it is not what MIMIC-III puts there.
    """
    path = find(folder, "ADMISSIONS")
    columns = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "HOSPITAL_EXPIRE_FLAG")
    result = {}
    for number, row in tables.rows(path, columns):
        for column in columns:
            if row[column] is None:
                raise UserError(f"{tables.where(path, column, number)}: empty; copy the table again")
        if row["HOSPITAL_EXPIRE_FLAG"] not in ("0", "1"):
            raise UserError(
                f"{tables.where(path, 'HOSPITAL_EXPIRE_FLAG', number)}: neither 0 nor 1; copy the table again"
            )
        stay = _time(path, row, "DISCHTIME", number) - _time(path, row, "ADMITTIME", number)
        result[identifier(row["HADM_ID"])] = Admission(
            patient=row["SUBJECT_ID"],
            newborn=row["ADMISSION_TYPE"].strip().upper() == "NEWBORN",
            died=row["HOSPITAL_EXPIRE_FLAG"] == "1",
            days=stay.total_seconds() / 86400,
        )
    return result


def icd_codes(folder: str | Path, name: str) -> dict[str, list[str]]:
    """Returns the ICD-9 codes of DIAGNOSES_ICD or PROCEDURES_ICD by HADM_ID, in table order, zeros kept."""
    result: dict[str, list[str]] = {}
    for _, row in tables.rows(find(folder, name), ("HADM_ID", "ICD9_CODE")):
        if row["HADM_ID"] and row["ICD9_CODE"]:
            result.setdefault(identifier(row["HADM_ID"]), []).append(row["ICD9_CODE"].strip())
    return result


def identifier(cell: str) -> str:
    """Returns an identifier without the `.0` that tools leave on integer columns with empty cells."""
    return cell.strip().removesuffix(".0")


def _time(path: Path, row: tables.Row, column: str, number: int) -> datetime:
    try:
        return datetime.fromisoformat(row[column])
    except ValueError:
        raise UserError(
            f"{tables.where(path, column, number)}: not a time like 2150-01-31 12:00:00; copy the table again"
        ) from None
