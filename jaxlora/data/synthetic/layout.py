"""The tables of both releases: their columns in the order of the files, and how their rows are written."""

import gzip
import shutil
from datetime import date
from pathlib import Path

MIMIC3 = {
    "NOTEEVENTS": "ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME CATEGORY DESCRIPTION CGID ISERROR TEXT",
    "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION "
    "DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS "
    "HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
    "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
    "DIAGNOSES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "PROCEDURES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "D_ICD_DIAGNOSES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
    "D_ICD_PROCEDURES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
    "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT FIRST_WARDID LAST_WARDID "
    "INTIME OUTTIME LOS",
    "PROCEDUREEVENTS_MV": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID VALUE VALUEUOM LOCATION "
    "LOCATIONCATEGORY STORETIME CGID ORDERID LINKORDERID ORDERCATEGORYNAME SECONDARYORDERCATEGORYNAME "
    "ORDERCATEGORYDESCRIPTION ISOPENBAG CONTINUEINNEXTDEPT CANCELREASON STATUSDESCRIPTION COMMENTS_EDITEDBY "
    "COMMENTS_CANCELEDBY COMMENTS_DATE",
    "CHARTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE VALUENUM VALUEUOM "
    "WARNING ERROR RESULTSTATUS STOPPED",
    "LABEVENTS": "ROW_ID SUBJECT_ID HADM_ID ITEMID CHARTTIME VALUE VALUENUM VALUEUOM FLAG",
}
_NOTE = "note_id subject_id hadm_id note_type note_seq charttime storetime text"
_DETAIL = "note_id subject_id field_name field_value field_ordinal"
MIMIC4 = {
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id "
    "admission_location discharge_location insurance language marital_status race edregtime edouttime "
    "hospital_expire_flag",
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
    "icu/procedureevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid value valueuom "
    "location locationcategory orderid linkorderid ordercategoryname ordercategorydescription patientweight isopenbag "
    "continueinnextdept statusdescription originalamount originalrate",
    "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom "
    "warning",
    "note/discharge": _NOTE,
    "note/radiology": _NOTE,
    "note/discharge_detail": _DETAIL,
    "note/radiology_detail": _DETAIL,
}

Cell = str | int | float | date | None
_FLUSH = 1 << 20  # characters: the most that a table keeps in memory


class Table:
    """A file of one table that grows by rows; used as a context, it is whole when the context ends.

    MIMIC-III quotes every text and leaves numbers and times bare; MIMIC-IV quotes where CSV needs it. Nulls are empty.

    Args:
      path: of the file; one that ends in `.gz` is compressed, at the level that costs least time.
      quoted: as MIMIC-III does.
      row_id: the first cell of the next row, which counts up; None for tables without ROW_ID.
    """

    def __init__(self, path: Path, quoted: bool, row_id: int | None = None):
        self.rows = 0
        self._quoted, self._row_id, self._lines, self._held = quoted, row_id, [], 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        # No name and no time in the header of gzip: the same rows are the same bytes.
        self._stream = gzip.GzipFile("", "wb", 1, self._file, mtime=0) if path.suffix == ".gz" else self._file

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_) -> None:
        self._flush()
        if self._stream is not self._file:
            self._stream.close()
        self._file.close()

    def header(self, columns: str) -> None:
        """Writes the names of the columns."""
        self._line(",".join(f'"{name}"' if self._quoted else name for name in columns.split()))

    def add(self, *cells: Cell) -> None:
        """Writes one row; its ROW_ID comes first where the table has one."""
        line = ",".join([_cell(cell, self._quoted) for cell in cells])
        if self._row_id is not None:
            line = f"{self._row_id},{line}"
            self._row_id += 1
        self.rows += 1
        self._line(line)

    def _line(self, line: str) -> None:
        self._lines.append(line)
        self._held += len(line)
        if self._held > _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            self._stream.write(("\n".join(self._lines) + "\n").encode())
        self._lines, self._held = [], 0


def _cell(cell: Cell, quoted: bool) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        return str(cell)
    if quoted or '"' in cell or "," in cell or "\n" in cell or "\r" in cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell


def append(part: Path, whole: Path) -> None:
    """Appends a file to `whole`; compressed ones stay so, for a gzip file may have many members."""
    with whole.open("ab") as out, part.open("rb") as file:
        shutil.copyfileobj(file, out, _FLUSH)
