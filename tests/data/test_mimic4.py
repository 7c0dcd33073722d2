"""The tables of MIMIC-IV and MIMIC-IV-Note, in every layout that people unpack them to."""

import gzip
from datetime import datetime

import pytest

from jaxlora.data.mimic import Admission, Note, Summary
from jaxlora.data.mimic4 import Mimic4
from jaxlora.errors import UserError

ADMISSIONS = "subject_id,hadm_id,admittime,dischtime,admission_type,hospital_expire_flag\n"
DISCHARGE = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text\n"


def put(folder, table, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}.csv.gz").write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize("place", ["", "hosp", "3.1/hosp", "3.1"])
def test_admissions(tmp_path, place):
    put(tmp_path / place, "admissions", ADMISSIONS + "1,2,2180-05-06 22:00:00,2180-05-07 10:00:00,EW EMER.,1\n")
    expected = Admission("1", newborn=False, died=True, days=0.5, admitted=datetime(2180, 5, 6, 22))
    assert Mimic4(tmp_path).admissions() == {"2": expected}
    assert Mimic4(tmp_path / place).admissions() == {"2": expected}


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("mimic/note", ""),
        ("notes/2.2/note", "notes"),
        ("notes/note", "notes"),
        ("notes", "notes"),
        ("n", "n/discharge.csv.gz"),
    ],
)
def test_summaries_and_notes(tmp_path, place, given):
    note = '1-DS-{0},1,2,DS,{0},2180-05-07 00:00:00,2180-05-09 15:26:00,"{1}"\n'
    put(
        tmp_path / place,
        "discharge",
        DISCHARGE
        + note.format(21, " \nAllergies: \n___\n \nX:")
        + "1-AD-3,1,,AD,3,2180-05-08,,y\n1-XX-4,1,2,XX,4,,,z\n",
    )
    put(tmp_path / place, "radiology", DISCHARGE + "1-RR-7,1,,RR,7,2180-05-07,,CHEST\n")
    release = Mimic4(tmp_path / "mimic", given and tmp_path / given)
    assert list(release.summaries()) == [
        Summary(("2180-05-07 00:00:00", False, 21), "2", "report", False, " \nAllergies: \n___\n\nX:"),
        Summary(("2180-05-08", True, 3), None, "addendum", False, "y"),
        Summary(("", False, 4), "2", "", False, "z"),
    ]
    assert [note for note in release.notes() if note.category == "radiology"] == [
        Note("1-RR-7", "1", None, "radiology", "CHEST", False)
    ]
    assert [note.id for note in release.notes()] == ["1-DS-21", "1-AD-3", "1-XX-4", "1-RR-7"]


def test_codes_have_a_version(tmp_path):
    put(tmp_path, "diagnoses_icd", "hadm_id,icd_code,icd_version\n2,4019,9\n2,I10 ,10\n3,0066,9.0\n,I10,10\n3,,9\n")
    assert list(Mimic4(tmp_path).codes("diagnoses")) == [("2", "4019", "9"), ("2", "I10", "10"), ("3", "0066", "9")]
    put(tmp_path, "procedures_icd", "hadm_id,icd_code,icd_version\n2,0066,9\n2,0016070,11\n")
    with pytest.raises(UserError, match="column 'icd_version', row 2: neither 9 nor 10"):
        list(Mimic4(tmp_path).codes("procedures"))


def test_adults_by_their_anchor(tmp_path):
    put(tmp_path / "hosp", "patients", "subject_id,anchor_age,anchor_year\n1,20,2150\n2,20,2150\n3,91,2150\n")
    stay = {"newborn": False, "died": False, "days": 1.0}
    years = {"1": 2148, "2": 2147, "3": 2150, "4": 2150}
    admissions = {patient: Admission(patient, **stay, admitted=datetime(year, 6, 1)) for patient, year in years.items()}
    assert Mimic4(tmp_path).adults(admissions) == {"1": True, "2": False, "3": True}
    for age in ("old", "9" * 5000):
        put(tmp_path / "hosp", "patients", f"subject_id,anchor_age,anchor_year\n1,{age},2150\n")
        with pytest.raises(UserError, match="column 'anchor_age', row 1: not a whole number; copy the table again$"):
            Mimic4(tmp_path).adults(admissions)


def test_missing_tables_are_named(tmp_path):
    put(tmp_path / "hosp", "admissions", ADMISSIONS)
    for name, field in (("patients", "MIMIC-IV"), ("discharge", "MIMIC-IV-Note")):
        with pytest.raises(UserError, match=f"no {name}.csv or {name}.csv.gz; copy the {field} table {name} there"):
            Mimic4(tmp_path).table(name)
    with pytest.raises(UserError, match="no such folder; set mimic4_note"):
        Mimic4(tmp_path, tmp_path / "absent").table("radiology")
    assert Mimic4(tmp_path).ventilations() is None
