"""The CORe recipe, step by step."""

import csv
from collections import Counter
from datetime import datetime

import pytest

from jaxlora.data.mimic import Admission
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.mimic4 import Mimic4
from jaxlora.data.notes import admission_notes, admission_part

COLUMNS = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
ADMISSIONS = {
    str(i): Admission(f"p{i}", newborn=i == 9, died=False, days=1.0, admitted=datetime(2101, 1, 1))
    for i in range(1, 20)
}
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


def run(tmp_path, *rows, mode="correct"):
    with (tmp_path / "NOTEEVENTS.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    flow = Counter()
    return {n.admission: n.text for n in admission_notes(Mimic3(tmp_path), ADMISSIONS, mode, flow)}, flow


def test_eight_sections_in_order_present_even_when_empty():
    assert admission_part(SUMMARY) == (
        "CHIEF COMPLAINT: chest pain\n\n"
        "PRESENT ILLNESS: 58 y/o M w/ CAD (s/p CABG).  On arrival 3. exam: pain free.\n\n"
        "MEDICAL HISTORY: HTN\n\n"
        "MEDICATION ON ADMISSION: \n\nALLERGIES: Penicillins\n\nPHYSICAL EXAM: \n\nFAMILY HISTORY: \n\nSOCIAL HISTORY: "
    )


def test_a_section_at_the_end_of_the_note_is_kept_and_lost_in_paper_mode():
    summary = "Chief Complaint:\ncough\n\nFamily History:\nnone\n"
    assert admission_part(summary).endswith("FAMILY HISTORY: none\n\nSOCIAL HISTORY: ")
    assert admission_part(summary, "paper").endswith("FAMILY HISTORY: \n\nSOCIAL HISTORY: ")
    assert admission_part("CHIEF COMPLAINT:\ncough\n").startswith("CHIEF COMPLAINT: cough\n\n")
    assert admission_part("CHIEF COMPLAINT:\ncough\n", "paper") is None


def test_a_backslash_before_an_n_is_a_line_break_in_paper_mode_only():
    summary = r"Chief Complaint: a\nb\n\nc: Past Medical History:" + "\n\nX:"
    assert admission_part(summary).startswith(r"CHIEF COMPLAINT: a\nb\n\nc: Past Medical History:" + "\n\n")
    assert admission_part(summary, "paper").startswith("CHIEF COMPLAINT: a b\n\n")


def test_letters_that_are_two_in_lower_case_move_no_section():
    assert admission_part("\u0130\u0130\u0130 Chief Complaint: cough\n\nX:").startswith("CHIEF COMPLAINT: cough\n\n")


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


def test_paper_mode_keeps_flagged_errors_and_orders_by_admission(tmp_path):
    rows = [note(SUMMARY + str(i), row=i, admission=admission) for i, admission in enumerate(("11", "2", "3"))]
    rows[1] = note(SUMMARY, row=1, admission="2", error=1)
    assert list(run(tmp_path, *rows)[0]) == ["11", "3"]
    kept, flow = run(tmp_path, *rows, mode="paper")
    assert list(kept) == ["2", "3", "11"] and "notes: flagged as an error" not in flow


def test_rows_of_one_day_are_ordered_by_number(tmp_path):
    kept, _ = run(tmp_path, note("Family History:\nb\n\nX:", row=10), note(SUMMARY + "\n\nFamily History:\na", row=9))
    assert "FAMILY HISTORY: a" in kept["1"]


def test_a_report_whose_text_comes_again_as_an_addendum_is_none(tmp_path):
    kept, flow = run(tmp_path, note(SUMMARY), note(SUMMARY, row=2, report=False))
    assert not kept and flow["admissions: an addendum without its report"] == 1


def test_mimic4_with_blanks_on_its_empty_lines(tmp_path):
    columns = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
    summary = SUMMARY.replace("\n\n", "\n \n")
    rows = [
        ("1-AD-1", "1", "1", "AD", 1, "2151-08-04", "", "Family History:\nx"),
        ("1-DS-9", "1", "1", "DS", 9, "2151-08-04", "", summary),
    ]
    rows.append(("1-XX-3", "1", "1", "XX", 3, "2151-08-05", "", "y"))
    with (tmp_path / "discharge.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    flow = Counter()
    kept = admission_notes(Mimic4(tmp_path), ADMISSIONS, "correct", flow)
    assert [(n.admission, n.patient, n.text) for n in kept] == [
        ("1", "p1", admission_part(SUMMARY + "\n\nFamily History:\nx"))
    ]
    assert flow == {"notes: read": 3, "notes: not a discharge summary": 1, "admissions: kept": 1}
