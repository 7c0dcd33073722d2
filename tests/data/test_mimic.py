"""The tables of MIMIC-III are found and read whatever their place, case and packing; wrong cells are named."""

import gzip
from datetime import datetime

import pytest

from jaxlora.data.mimic import Admission, Note, Summary
from jaxlora.data.mimic3 import Mimic3
from jaxlora.errors import UserError

HEADER = "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE,HOSPITAL_EXPIRE_FLAG,DIAGNOSIS\n"
ROW = '7,100,2101-01-01,2101-01-02,URGENT,0,"FEVER, COUGH"\n'
ADMISSION = Admission("7", newborn=False, died=False, days=1.0, admitted=datetime(2101, 1, 1))


@pytest.mark.parametrize("name", ["ADMISSIONS.csv", "admissions.csv", "ADMISSIONS.csv.gz"])
def test_admissions(tmp_path, name):
    text = HEADER + "7,100.0,2101-01-01 12:00:00,2101-01-04 00:00:00,NEWBORN,1,Organ Donor/sda\n"
    text = text.lower().replace("newborn", "NEWBORN") if name.islower() else text
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    noon = datetime(2101, 1, 1, 12)
    expected = Admission("7", newborn=True, died=True, days=2.5, admitted=noon, donor=True)
    assert Mimic3(tmp_path).admissions() == {"100": expected}


@pytest.mark.parametrize("place", [".", "1.4", "mimic/../1.4", "ADMISSIONS.csv"])
def test_layouts(tmp_path, place):
    (tmp_path / "mimic").mkdir()
    folder = tmp_path if place == "ADMISSIONS.csv" else tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / "ADMISSIONS.csv").write_text(HEADER + ROW)
    given = tmp_path / place if place == "ADMISSIONS.csv" else tmp_path
    assert Mimic3(given).admissions() == {"100": ADMISSION}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7,100,soon,2101-01-01,URGENT,0,", "column 'ADMITTIME', row 2: not a time like"),
        ("7,100,2101-01-01,,URGENT,0,", "column 'DISCHTIME', row 2: empty"),
        ("7,100,2101-01-01,01/02/2101,URGENT,0,", "column 'DISCHTIME', row 2: not a time like"),
        ("7,100,2101-01-01T00:00:00+01:00,2101-01-02,URGENT,0,", "column 'ADMITTIME', row 2: not a time like"),
        ("7,100,1799-01-01,2101-01-02,URGENT,0,", "column 'ADMITTIME', row 2: a year outside 1800-2299"),
        ("7,100,2101-01-01,2101-02-30,URGENT,0,", "column 'DISCHTIME', row 2: not a time like"),
        ("7,100,2101-01-01,2101-01-02,URGENT,soon,", "column 'HOSPITAL_EXPIRE_FLAG', row 2: neither 0 nor 1"),
        ("7,,2101-01-01,2101-01-02,URGENT,0,", "column 'HADM_ID', row 2: empty"),
        (",101,2101-01-01,2101-01-02,URGENT,0,", "column 'SUBJECT_ID', row 2: empty"),
        ("  ,101,2101-01-01,2101-01-02,URGENT,0,", "column 'SUBJECT_ID', row 2: empty"),
        ("7,  ,2101-01-01,2101-01-02,URGENT,0,", "column 'HADM_ID', row 2: empty"),
        ("8,100,2101-01-01,2101-01-02,URGENT,0,", "column 'HADM_ID', row 2: an earlier row has it too"),
    ],
)
def test_admissions_that_are_wrong(tmp_path, row, message):
    path = tmp_path / "ADMISSIONS.csv"
    path.write_text(HEADER + ROW + row + "\n")
    with pytest.raises(UserError, match=message) as caught:
        Mimic3(tmp_path).admissions()
    assert str(caught.value).startswith(f"{path}, ") and "\n" not in str(caught.value)
    assert "soon" not in str(caught.value) and "100" not in str(caught.value).replace(str(path), "")


def test_a_stay_may_end_before_it_begins(tmp_path):
    (tmp_path / "ADMISSIONS.csv").write_text(HEADER + "7,100,2101-01-02,2101-01-01 12:00:00,URGENT,1,\n")
    assert Mimic3(tmp_path).admissions()["100"].days == -0.5


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "ADMISSIONS.csv").write_text(HEADER.replace("DISCHTIME,", "") + ROW)
    with pytest.raises(UserError, match="ADMISSIONS.csv: no column 'DISCHTIME'"):
        Mimic3(tmp_path).admissions()


def test_a_missing_table_is_named(tmp_path):
    message = "no NOTEEVENTS.csv or NOTEEVENTS.csv.gz; copy the MIMIC-III table NOTEEVENTS"
    with pytest.raises(UserError, match=message):
        Mimic3(tmp_path).table("NOTEEVENTS")
    with pytest.raises(UserError, match="no such folder; set mimic3"):
        Mimic3(tmp_path / "absent").table("NOTEEVENTS")


def test_a_table_in_two_versions_is_refused(tmp_path):
    for version in ("1.3", "1.4"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ADMISSIONS.csv").write_text(HEADER + ROW)
    with pytest.raises(UserError, match="2 files of the table ADMISSIONS; set mimic3 to one version"):
        Mimic3(tmp_path).admissions()
    assert Mimic3(tmp_path / "1.4").admissions() == {"100": ADMISSION}
    (tmp_path / "1.4" / "admissions.csv.gz").write_bytes(gzip.compress((HEADER + ROW).encode()))
    with pytest.raises(UserError, match="1.4: 2 files of the table ADMISSIONS; .* or keep one of them"):
        Mimic3(tmp_path / "1.4").admissions()


def test_a_truncated_table_is_named(tmp_path):
    path = tmp_path / "ADMISSIONS.csv.gz"
    packed = gzip.compress((HEADER + ROW.replace("100", "{}") * 2000).format(*range(2000)).encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError) as caught:
        Mimic3(tmp_path).admissions()
    assert str(caught.value).startswith(str(path)) and "FEVER" not in str(caught.value)


def test_codes_keep_their_zeros_and_order(tmp_path):
    (tmp_path / "PROCEDURES_ICD.csv").write_text('hadm_id,icd9_code\n1,"0066"\n1,"3891"\n2,\n3,"034"\n1.0,"0066"\n')
    codes = [("1", "0066", "9"), ("1", "3891", "9"), ("3", "034", "9"), ("1", "0066", "9")]
    assert list(Mimic3(tmp_path).codes("procedures")) == codes
    (tmp_path / "PROCEDURES_ICD.csv").write_text('hadm_id,icd9_code\n1,"00.66 "\n  ,0066\n')
    assert list(Mimic3(tmp_path).codes("procedures")) == codes[:1]


@pytest.mark.parametrize("code", ["Zq7x Zq7x", "3.8.91", "38-91", "º"])
def test_a_code_that_is_none_is_never_a_label(tmp_path, code):
    (tmp_path / "DIAGNOSES_ICD.csv").write_text(f"hadm_id,icd9_code\n1,0066\n1,{code}\n")
    with pytest.raises(
        UserError, match="DIAGNOSES_ICD.csv, column 'ICD9_CODE', row 2: not an ICD code; copy"
    ) as caught:
        list(Mimic3(tmp_path).codes("diagnoses"))
    assert code not in str(caught.value)


def test_blank_identifiers_are_none(tmp_path):
    (tmp_path / "NOTEEVENTS.csv").write_text(NOTES + ' ,"  ",  ,2101-01-02,Discharge summary,Report,,a\n')
    assert list(Mimic3(tmp_path).notes()) == [Note("1", None, None, "Discharge summary", "a", False)]
    assert [summary.admission for summary in Mimic3(tmp_path).summaries()] == [None]


def test_a_number_of_thousands_of_digits(tmp_path):
    (tmp_path / "NOTEEVENTS.csv").write_text(NOTES + GOOD.format("1" * 5000, 1))
    with pytest.raises(UserError, match="column 'ROW_ID', row 1: not a whole number; copy the table again$"):
        list(Mimic3(tmp_path).summaries())


def test_summaries_and_notes(tmp_path):
    (tmp_path / "NOTEEVENTS.csv").write_bytes(
        b'"ROW_ID","SUBJECT_ID","HADM_ID","CHARTDATE","CATEGORY","DESCRIPTION","ISERROR","TEXT"\r\n'
        b'5,7,100.0,2101-01-02,"Discharge summary","Report",,"a, ""b""\r\n\r\nc"\r\n'
        b'6,7,,2101-01-03,"Physician ","Intensivist Note",1,"d"\r\n'
        b'7,,100,2101-01-04,"Discharge summary","Addendum",,\r\n'
    )
    assert list(Mimic3(tmp_path).summaries()) == [
        Summary(("2101-01-02", 5), "100", "report", False, 'a, "b"\r\n\r\nc'),
        Summary(("", 2), None, "", True, "d"),
        Summary(("2101-01-04", 7), "100", "addendum", False, None),
    ]
    assert list(Mimic3(tmp_path).notes()) == [
        Note("5", "7", "100", "Discharge summary", 'a, "b"\r\n\r\nc', False),
        Note("6", "7", None, "Physician", "d", True),
        Note("7", None, "100", "Discharge summary", None, False),
    ]


NOTES = "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CATEGORY,DESCRIPTION,ISERROR,TEXT\n"
GOOD, SECRET = '{},7,100,2101-01-02,"Discharge summary","Report",,"Zq7x {}\n\nline"\n', "Zq7x"


def damaged(kind):
    rows = [GOOD.format(i, i) for i in range(1, 3001)]
    if kind == "truncated":
        packed = gzip.compress((NOTES + "".join(rows)).encode())
        return packed[: len(packed) // 2]
    if kind == "header again":
        rows[1] = NOTES
    if kind == "cut row":
        rows[1] = '2,7,100,"Zq7x"\n'
    if kind == "date":
        rows[1] = rows[1].replace("2101-01-02", "01/02/2101")
    if kind == "open quote":
        rows[-1] = rows[-1].rstrip()[:-1]
    text = (NOTES + "".join(rows)).encode()
    return gzip.compress(text.replace(b"Zq7x 2\n", b"Zq7x \xe9\n") if kind == "not UTF-8" else text)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", ""),
        ("header again", ", row 2: the header again"),
        ("cut row", ", row 2: "),
        ("date", ", column 'CHARTDATE', row 2: not a time like"),
        ("open quote", ""),
        ("not UTF-8", ", row 2: |, column 'TEXT', row 2: "),
    ],
)
def test_notes_that_are_wrong(tmp_path, kind, message):
    path = tmp_path / "NOTEEVENTS.csv.gz"
    path.write_bytes(damaged(kind))
    with pytest.raises(UserError) as caught:
        list(Mimic3(tmp_path).summaries())
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said and SECRET not in said
    assert any(part in said for part in message.split("|"))


@pytest.mark.parametrize(
    ("birth", "adult"),
    [("2083-01-02", False), ("2083-01-01", True), ("1801-01-01", True), ("2101-01-01", False), (None, None)],
)
def test_adults(tmp_path, birth, adult):
    (tmp_path / "PATIENTS.csv").write_text(f"SUBJECT_ID,DOB\n{7 if birth else 8},{birth or '2000-01-01'} 00:00:00\n")
    assert Mimic3(tmp_path).adults({"100": ADMISSION}) == ({} if adult is None else {"100": adult})


def test_the_public_demo(shared_data):
    release = Mimic3(shared_data / "mimiciii-demo-1.4")
    admissions = release.admissions()
    assert len(admissions) == 129 and len({a.patient for a in admissions.values()}) == 100
    assert list(release.adults(admissions).values()).count(False) == 1  # who is 17
    assert len(release.adults(admissions)) == 129
    codes = [code for _, code, _ in release.codes("procedures")]
    assert len(codes) == 506 and sum(code.startswith("0") for code in codes) == 34
    with pytest.raises(UserError, match="the table has no rows"):
        list(release.summaries())
