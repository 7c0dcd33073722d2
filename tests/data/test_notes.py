"""The CORe recipe, step by step."""

import csv
from collections import Counter

import pytest

from jaxlora.data.mimic import Admission
from jaxlora.data.notes import admission_notes, admission_part

COLUMNS = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
ADMISSIONS = {str(i): Admission(f"p{i}", newborn=i == 9, died=False, days=1.0) for i in range(1, 10)}
SUMMARY = """Admission Date: [**2151-7-16**]

Allergies:
Penicillins

Chief Complaint:
chest
pain

History of Present Illness:
58 y/o M w/ CAD (s/p CABG).

On arrival 3. exam: pain free.

Past Medical History:
HTN

Brief Hospital Course:
Cath."""


def note(text, *, row=1, admission="1", date="2151-08-04", category="Discharge summary", report=True, error=""):
    return (row, "p", admission, date, category, "Report" if report else "Addendum", error, text)


def run(tmp_path, *rows):
    with (tmp_path / "NOTEEVENTS.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    flow = Counter()
    return {n.admission: n.text for n in admission_notes(tmp_path, ADMISSIONS, flow)}, flow


def test_eight_sections_in_order_present_even_when_empty():
    assert admission_part(SUMMARY) == (
        "CHIEF COMPLAINT: chest pain\n\n"
        "PRESENT ILLNESS: 58 y/o M w/ CAD (s/p CABG).  On arrival 3. exam: pain free.\n\n"
        "MEDICAL HISTORY: HTN\n\n"
        "MEDICATION ON ADMISSION: \n\nALLERGIES: Penicillins\n\nPHYSICAL EXAM: \n\nFAMILY HISTORY: \n\nSOCIAL HISTORY: "
    )


def test_a_section_at_the_end_of_the_note_is_kept():
    assert admission_part("CHIEF COMPLAINT:\ncough\n").startswith("CHIEF COMPLAINT: cough\n\n")


def test_an_empty_section_takes_in_the_next_as_in_core():
    part = admission_part("Chief Complaint:\n\nPast Medical History:\nHTN\n\nX:")
    assert part.startswith("CHIEF COMPLAINT: Past Medical History: HTN\n\n")


def test_the_three_first_sections_may_not_all_be_empty():
    assert admission_part("Allergies:\nNKDA\n\nFamily History:\nnone\n\nX:") is None


def test_the_first_match_of_a_heading_counts():
    assert "PHYSICAL EXAM: at admission" in admission_part(
        "Chief Complaint:\nx\n\nPhysical Exam:\nat admission\n\nDischarge Physical Exam:\nlater\n\nX:"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (note(SUMMARY, category="Nursing/other"), "notes: not a discharge summary"),
        (note(SUMMARY, error=1), "notes: flagged as an error"),
        (note(""), "notes: no text"),
        (note(SUMMARY, admission=""), "notes: no admission"),
        (note(SUMMARY, admission="77"), "notes: an admission that ADMISSIONS lacks"),
        (note(SUMMARY, admission="9"), "notes: a newborn's"),
        (note(SUMMARY, report=False), "admissions: an addendum without its report"),
        (note("Allergies:\nNKDA"), "admissions: neither complaint nor illness nor history"),
    ],
)
def test_every_drop_is_counted(tmp_path, row, reason):
    kept, flow = run(tmp_path, row)
    assert not kept and flow == {"notes: read": 1, reason: 1, "admissions: kept": 0}


def test_texts_of_an_admission_are_joined_by_date(tmp_path):
    kept, _ = run(
        tmp_path,
        note("Addendum:\n\nFamily History:\nCAD", row=1, date="2151-08-06", report=False),
        note(SUMMARY, row=2),
        note("Social History:\nsmoker", row=3, admission="1.0", report=False),
    )
    assert "SOCIAL HISTORY: smoker\n" not in kept["1"]  # an addendum follows it, so it ends there
    assert "SOCIAL HISTORY: smoker" in kept["1"] and "FAMILY HISTORY: CAD" in kept["1"]


def test_the_last_of_equal_texts_is_kept(tmp_path):
    kept, flow = run(tmp_path, note(SUMMARY, admission="2", date="2151-09-01"), note(SUMMARY, row=2, admission="1"))
    assert list(kept) == ["2"] and flow["notes: the same text again"] == 1


def test_windows_line_ends_are_line_ends(tmp_path):
    kept, _ = run(tmp_path, note(SUMMARY.replace("\n", "\r\n")))
    assert kept["1"] == admission_part(SUMMARY)
