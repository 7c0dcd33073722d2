"""The tables of MIMIC-IV 2.2 and 3.x, and the notes of MIMIC-IV-Note 2.2, which is a release of its own."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxlora.data import groups, mimic, tables
from jaxlora.data.mimic import Admission, Note, Summary, Ventilation, identifier, moment, optional, required
from jaxlora.errors import UserError

_CODES = {"diagnoses": "diagnoses_icd", "procedures": "procedures_icd"}
_KINDS = {"DS": "report", "AD": "addendum"}
_BLANK_LINE = re.compile(r"\n[ \t]+(?=\n)")
INVASIVE_VENTILATION = "225792"


class Mimic4:
    """MIMIC-IV in its folder, and its notes there or in another one; a table is read when it is asked for."""

    name = "mimic4"
    ventilated = "procedureevents"  # the table that `ventilations` needs

    def __init__(self, folder: str | Path, note_folder: str | Path = ""):
        self.folder = Path(folder)
        self.note_folder = Path(note_folder or folder)

    def table(self, name: str) -> Path:
        """Returns the file of a table; UserError where there is none."""
        if name in ("discharge", "radiology", "discharge_detail", "radiology_detail"):
            return mimic.find(self.note_folder, name, "MIMIC-IV-Note", "mimic4_note")
        return mimic.find(self.folder, name, "MIMIC-IV", "mimic4")

    def admissions(self) -> dict[str, Admission]:
        """Returns admissions by hadm_id; MIMIC-IV marks no newborns and tells no diagnosis at admission.

        Raises:
          UserError: the table is missing or a cell of it is not what MIMIC-IV puts there.
        """
        path = self.table("admissions")
        names = ("subject_id", "hadm_id", "admittime", "dischtime", "admission_type", "hospital_expire_flag")
        return {id: admission for id, admission, _ in mimic.admissions(path, names)}

    def summaries(self) -> Iterator[Summary]:
        """Yields the rows of discharge, in file order.

        The empty lines of these notes hold a blank, which would hide them from the recipe for admission notes, so it
        is taken off.

        Raises:
          UserError: the table is missing or malformed, or a charttime is not a time.
        """
        columns = ("hadm_id", "note_type", "note_seq", "charttime", "text")
        path = self.table("discharge")
        for number, row in tables.rows(path, columns):
            kind = _KINDS.get((row["note_type"] or "").strip().upper(), "")
            time, seq = mimic.order(path, row, number, "charttime", "note_seq")
            text = row["text"] and _BLANK_LINE.sub("\n", row["text"].replace("\r\n", "\n"))
            # Reports and addenda are numbered apart.
            yield Summary((time, kind == "addendum", seq), optional(row["hadm_id"]), kind, False, text)

    def notes(self) -> Iterator[Note]:
        """Yields every note of discharge and then of radiology, in file order."""
        for name in ("discharge", "radiology"):
            path = self.table(name)
            for number, row in tables.rows(path, ("note_id", "subject_id", "hadm_id", "text")):
                id = optional(row["note_id"]) or f"{name}-{number}"
                yield Note(id, optional(row["subject_id"]), optional(row["hadm_id"]), name, row["text"], False)

    def codes(self, kind: str) -> Iterator[tuple[str, str, str]]:
        """Yields (admission, code, "9" or "10") of "diagnoses" or "procedures", in file order, zeros kept.

        Raises:
          UserError: an icd_version is neither 9 nor 10, or a code is none.
        """
        path = self.table(_CODES[kind])
        for number, row in tables.rows(path, ("hadm_id", "icd_code", "icd_version")):
            version = identifier(row["icd_version"] or "")
            if version not in ("9", "10"):
                where = tables.where(path, "icd_version", number)
                raise UserError(f"{where}: neither 9 nor 10; copy the table again")
            admission, code = optional(row["hadm_id"]), mimic.code(path, row, "icd_code", number)
            if admission and code:
                yield admission, code, version

    def adults(self, admissions: Mapping[str, Admission]) -> dict[str, bool]:
        """Returns whether the patient was 18 or older, by the age in the anchor year in patients; none for one it
        lacks."""
        return {id: age >= 18 for id, age in self._ages(self.table("patients"), admissions).items()}

    def groups(self, admissions: Mapping[str, Admission]) -> dict[str, dict[str, str]]:
        """Returns the groups of each admission: by admissions, and by patients where it is there.

        Raises:
          UserError: an anchor age or year in patients is no number.
        """
        columns = {"ethnicity": "race", "insurance": "insurance", "admission_type": "admission_type"}
        found = mimic.grouped(self.table("admissions"), "hadm_id", columns)
        path = mimic.search(self.folder, "patients", "mimic4")
        if path is None:
            return found
        sexes = mimic.grouped(path, "subject_id", {"sex": "gender"})
        ages = self._ages(path, admissions) if groups.present(path, {"age": "anchor_age"}) else {}
        return mimic.with_patients(found, admissions, sexes, ages)

    def _ages(self, path: Path, admissions: Mapping[str, Admission]) -> dict[str, int]:
        """Returns the age in the year of each admission; that of a patient over 89 is 91 in the anchor year."""
        born = {}
        for number, row in tables.rows(path, ("subject_id", "anchor_age", "anchor_year")):
            age, year = (mimic.whole(path, row, column, number) for column in ("anchor_age", "anchor_year"))
            born[identifier(required(path, row, "subject_id", number))] = year - age
        return {
            id: admission.admitted.year - born[admission.patient]
            for id, admission in admissions.items()
            if admission.patient in born
        }

    def ventilations(self) -> Iterator[Ventilation] | None:
        """Yields the spans on a ventilator of icu/procedureevents, or is None without that table."""
        path = mimic.search(self.folder, "procedureevents", "mimic4")
        return None if path is None else self._ventilations(path)

    def _ventilations(self, path: Path) -> Iterator[Ventilation]:
        columns = ("hadm_id", "stay_id", "starttime", "endtime", "itemid")
        for number, row in tables.rows(path, columns, keep={"itemid": (INVASIVE_VENTILATION,)}):
            admission = optional(row["hadm_id"])
            if admission:
                start, end = (moment(path, row, column, number) for column in ("starttime", "endtime"))
                yield Ventilation(admission, optional(row["stay_id"]) or "", start, end)
