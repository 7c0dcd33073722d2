"""The tables of MIMIC-III v1.4: one folder of `NAME.csv` or `NAME.csv.gz`."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxlora.data import carevue, groups, mimic, tables
from jaxlora.data.mimic import Admission, Note, Summary, Ventilation, identifier, moment, optional, required

_CODES = {"diagnoses": "DIAGNOSES_ICD", "procedures": "PROCEDURES_ICD"}
INVASIVE_VENTILATION = "225792"


class Mimic3:
    """MIMIC-III in its folder; a table is read when it is asked for."""

    name = "mimic3"
    ventilated = "PROCEDUREEVENTS_MV"  # the table that `ventilations` needs

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def table(self, name: str) -> Path:
        """Returns the file of a table; UserError where there is none."""
        return mimic.find(self.folder, name, "MIMIC-III", "mimic3")

    def admissions(self) -> dict[str, Admission]:
        """Returns ADMISSIONS by HADM_ID.

        Raises:
          UserError: the table is missing or a cell of it is not what MIMIC-III puts there.
        """
        path = self.table("ADMISSIONS")
        names = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "HOSPITAL_EXPIRE_FLAG")
        return {
            id: dataclasses.replace(
                admission,
                newborn=row["ADMISSION_TYPE"].strip().upper() == "NEWBORN",
                donor="donor" in (row["DIAGNOSIS"] or "").lower(),
            )
            for id, admission, row in mimic.admissions(path, names, ("DIAGNOSIS",))
        }

    def summaries(self) -> Iterator[Summary]:
        """Yields the rows of NOTEEVENTS, in file order.

        Raises:
          UserError: the table is missing or malformed, or the date of a discharge summary is not one.
        """
        columns = ("ROW_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
        path = self.table("NOTEEVENTS")
        for number, row in tables.rows(path, columns):
            kind, order = "", ("", number)
            if (row["CATEGORY"] or "").strip() == "Discharge summary":
                kind = "report" if (row["DESCRIPTION"] or "").strip() == "Report" else "addendum"
                order = mimic.order(path, row, number, "CHARTDATE", "ROW_ID")
            yield Summary(order, optional(row["HADM_ID"]), kind, _is_error(row), row["TEXT"])

    def notes(self) -> Iterator[Note]:
        """Yields every note of NOTEEVENTS, in file order."""
        columns = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CATEGORY", "ISERROR", "TEXT")
        for number, row in tables.rows(self.table("NOTEEVENTS"), columns):
            yield Note(
                optional(row["ROW_ID"]) or str(number),
                optional(row["SUBJECT_ID"]),
                optional(row["HADM_ID"]),
                (row["CATEGORY"] or "").strip(),
                row["TEXT"],
                _is_error(row),
            )

    def codes(self, kind: str) -> Iterator[tuple[str, str, str]]:
        """Yields (admission, ICD-9 code, "9") of "diagnoses" or "procedures", in file order, zeros kept.

        Raises:
          UserError: the table is missing or malformed, or a code is none.
        """
        path = self.table(_CODES[kind])
        for number, row in tables.rows(path, ("HADM_ID", "ICD9_CODE")):
            admission, code = optional(row["HADM_ID"]), mimic.code(path, row, "ICD9_CODE", number)
            if admission and code:
                yield admission, code, "9"

    def adults(self, admissions: Mapping[str, Admission]) -> dict[str, bool]:
        """Returns whether the patient was 18 or older, by the date of birth in PATIENTS; none for one it lacks."""
        return {id: age >= 18 for id, age in self._ages(self.table("PATIENTS"), admissions).items()}

    def groups(self, admissions: Mapping[str, Admission]) -> dict[str, dict[str, str]]:
        """Returns the groups of each admission: by ADMISSIONS, and by PATIENTS where it is there.

        Raises:
          UserError: a date of birth in PATIENTS is none.
        """
        columns = {"ethnicity": "ETHNICITY", "insurance": "INSURANCE", "admission_type": "ADMISSION_TYPE"}
        found = mimic.grouped(self.table("ADMISSIONS"), "HADM_ID", columns)
        path = mimic.search(self.folder, "PATIENTS", "mimic3")
        if path is None:
            return found
        sexes = mimic.grouped(path, "SUBJECT_ID", {"sex": "GENDER"})
        ages = self._ages(path, admissions) if groups.present(path, {"age": "DOB"}) else {}
        return mimic.with_patients(found, admissions, sexes, ages)

    def _ages(self, path: Path, admissions: Mapping[str, Admission]) -> dict[str, int]:
        """Returns the age at each admission in whole years; that of a patient over 89 is about 300."""
        births = {}
        for number, row in tables.rows(path, ("SUBJECT_ID", "DOB")):
            born = moment(path, row, "DOB", number)
            births[identifier(required(path, row, "SUBJECT_ID", number))] = born.timetuple()[:3]
        ages = {}
        for id, admission in admissions.items():
            if admission.patient in births:
                year, *day = births[admission.patient]
                on = admission.admitted.timetuple()
                ages[id] = on.tm_year - year - ([on.tm_mon, on.tm_mday] < day)
        return ages

    def ventilations(self) -> Iterator[Ventilation] | None:
        """Yields the spans on a ventilator, or is None without PROCEDUREEVENTS_MV.

        MetaVision charts them as procedures. CareVue charts settings of the ventilator among CHARTEVENTS, which
        `carevue.episodes` joins to spans; without that table, the patients of CareVue count as never ventilated.
        """
        procedures = mimic.search(self.folder, "PROCEDUREEVENTS_MV", "mimic3")
        if procedures is None:
            return None
        return self._ventilations(procedures, mimic.search(self.folder, "CHARTEVENTS", "mimic3"))

    def _ventilations(self, procedures: Path, charts: Path | None) -> Iterator[Ventilation]:
        columns = ("HADM_ID", "ICUSTAY_ID", "STARTTIME", "ENDTIME", "ITEMID", "CANCELREASON")
        for number, row in tables.rows(procedures, columns, keep={"ITEMID": (INVASIVE_VENTILATION,)}):
            admission = optional(row["HADM_ID"])
            if admission and (optional(row["CANCELREASON"]) or "0") == "0":
                start, end = (moment(procedures, row, column, number) for column in ("STARTTIME", "ENDTIME"))
                yield Ventilation(admission, optional(row["ICUSTAY_ID"]) or "", start, end)
        if charts is not None:
            yield from carevue.episodes(charts)


def _is_error(row: tables.Row) -> bool:
    """Returns whether a physician flagged the note as an error: ISERROR is 1, or empty."""
    return identifier(row["ISERROR"] or "") == "1"
