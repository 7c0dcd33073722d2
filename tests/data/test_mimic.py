"""MIMIC-III tables are found and read whatever their case and packing."""

import gzip

import pytest

from jaxlora.data import mimic
from jaxlora.errors import UserError

HEADER = "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE,HOSPITAL_EXPIRE_FLAG\n"


@pytest.mark.parametrize("name", ["ADMISSIONS.csv", "admissions.csv", "ADMISSIONS.csv.gz"])
def test_admissions(tmp_path, name):
    text = HEADER + "7,100.0,2101-01-01 12:00:00,2101-01-04 00:00:00,NEWBORN,1\n"
    text = text.lower() if name.islower() else text
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert mimic.admissions(tmp_path) == {"100": mimic.Admission("7", newborn=True, died=True, days=2.5)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7,100,2101-01-01,soon,URGENT,0", "column 'DISCHTIME', row 1: not a time"),
        ("7,100,2101-01-01,,URGENT,0", "column 'DISCHTIME', row 1: empty"),
        ("7,100,2101-01-01,2101-01-02,URGENT,soon", "column 'HOSPITAL_EXPIRE_FLAG', row 1: neither 0 nor 1"),
    ],
)
def test_admissions_that_are_wrong(tmp_path, row, message):
    (tmp_path / "ADMISSIONS.csv").write_text(HEADER + row + "\n")
    with pytest.raises(UserError, match=message) as caught:
        mimic.admissions(tmp_path)
    assert "soon" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match="no NOTEEVENTS.csv or NOTEEVENTS.csv.gz"):
        mimic.find(tmp_path, "NOTEEVENTS")
    with pytest.raises(UserError, match="no such folder; set mimic3"):
        mimic.find(tmp_path / "absent", "NOTEEVENTS")


def test_codes_keep_their_zeros_and_order(tmp_path):
    (tmp_path / "PROCEDURES_ICD.csv").write_text('hadm_id,icd9_code\n1,"0066"\n1,"3891"\n2,\n3,"034"\n')
    assert mimic.icd_codes(tmp_path, "PROCEDURES_ICD") == {"1": ["0066", "3891"], "3": ["034"]}


def test_note_events_mend_admissions_written_as_fractions(tmp_path):
    (tmp_path / "noteevents.csv.gz").write_bytes(gzip.compress(b"hadm_id,text\n145834.0,a\n,b\n"))
    rows = [row["HADM_ID"] for _, row in mimic.note_events(tmp_path, ("HADM_ID", "TEXT"))]
    assert rows == ["145834", None]


def test_the_public_demo(shared_data):
    folder = shared_data / "mimiciii-demo-1.4"
    admissions = mimic.admissions(folder)
    assert len(admissions) == 129 and len({a.patient for a in admissions.values()}) == 100
    codes = mimic.icd_codes(folder, "PROCEDURES_ICD")
    assert sum(len(c) for c in codes.values()) == 506
    assert sum(code.startswith("0") for c in codes.values() for code in c) == 34
    with pytest.raises(UserError, match="the table has no rows"):
        list(mimic.note_events(folder, ("TEXT",)))
