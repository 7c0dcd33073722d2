"""Admission notes: what a discharge summary says that was known at admission.

The recipe of CORe (van Aken et al., EACL 2021), which defines the outcome tasks of Clinical LLaMA-LoRA. Two of its
habits are mended: a section at the very end of a summary is kept (theirs needs a heading after it), and notes that
physicians flagged as errors are dropped.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jaxlora.data import mimic

# The heading searched for in the summary (anywhere, first match), and the one written in the admission note.
SECTIONS = {
    "chief complaint:": "CHIEF COMPLAINT",
    "present illness:": "PRESENT ILLNESS",
    "medical history:": "MEDICAL HISTORY",
    "medications on admission:": "MEDICATION ON ADMISSION",
    "allergies:": "ALLERGIES",
    "physical exam:": "PHYSICAL EXAM",
    "family history:": "FAMILY HISTORY",
    "social history:": "SOCIAL HISTORY",
}
_REQUIRED = ("CHIEF COMPLAINT", "PRESENT ILLNESS", "MEDICAL HISTORY")
# A section ends at a blank line before something like a heading: one line's start up to a colon, with no digit, dot,
# backslash, bar or parenthesis; or at the end of the summary.
_SECTION = {
    title: re.compile(re.escape(heading) + r"(.+?)(?:\n\n[^()\\|\d.\n]+?:|\Z)", re.IGNORECASE | re.DOTALL)
    for heading, title in SECTIONS.items()
}


@dataclass(frozen=True)
class AdmissionNote:
    """The admission part of the discharge summary of one admission, by raw identifiers."""

    admission: str
    patient: str
    text: str


@dataclass(frozen=True)
class _Summary:
    order: tuple[str, int]
    admission: str
    report: bool
    text: str


def admission_notes(
    folder: str | Path, admissions: dict[str, mimic.Admission], flow: Counter[str]
) -> list[AdmissionNote]:
    """Returns one note for every admission with a usable discharge summary.

    Args:
      folder: the MIMIC-III tables; NOTEEVENTS is read once and only its discharge summaries are kept in memory.
      admissions: of `mimic.admissions`.
      flow: counts every note and admission that is left out, by reason.

    Raises:
      UserError: a table is missing or malformed.
    """
    summaries = sorted(_summaries(folder, admissions, flow), key=lambda summary: summary.order)
    last = {summary.text: i for i, summary in enumerate(summaries)}
    texts: dict[str, list[str]] = {}
    reported = set()
    for i, summary in enumerate(summaries):
        if last[summary.text] != i:
            flow["notes: the same text again"] += 1
            continue
        texts.setdefault(summary.admission, []).append(summary.text)
        if summary.report:
            reported.add(summary.admission)

    result = []
    for admission, parts in texts.items():
        text = admission_part("\n\n".join(parts).strip())
        if admission not in reported:
            flow["admissions: an addendum without its report"] += 1
        elif text is None:
            flow["admissions: neither complaint nor illness nor history"] += 1
        else:
            result.append(AdmissionNote(admission, admissions[admission].patient, text))
    flow["admissions: kept"] = len(result)
    return result


def admission_part(summary: str) -> str | None:
    """Returns the eight admission sections of a discharge summary, or None when the three first are all empty.

    Every heading is written even when its section is empty; line breaks inside a section become blanks.
    """
    bodies = {}
    for title, pattern in _SECTION.items():
        match = pattern.search(summary)
        bodies[title] = match[1].replace("\n", " ").strip() if match else ""
    if not any(bodies[title] for title in _REQUIRED):
        return None
    return "\n\n".join(f"{title}: {body}" for title, body in bodies.items())


def _summaries(folder: str | Path, admissions: dict[str, mimic.Admission], flow: Counter[str]):
    columns = ("ROW_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
    for number, row in mimic.note_events(folder, columns):
        flow["notes: read"] += 1
        reason = _unusable(row, admissions)
        if reason:
            flow[f"notes: {reason}"] += 1
            continue
        order = (row["CHARTDATE"] or "", int(row["ROW_ID"]) if (row["ROW_ID"] or "").isdecimal() else number)
        report = (row["DESCRIPTION"] or "").strip() == "Report"
        yield _Summary(order, row["HADM_ID"], report, row["TEXT"].replace("\r\n", "\n"))


def _unusable(row: dict, admissions: dict[str, mimic.Admission]) -> str | None:
    if (row["CATEGORY"] or "").strip() != "Discharge summary":
        return "not a discharge summary"
    if is_error(row):
        return "flagged as an error"
    if not (row["TEXT"] or "").strip():
        return "no text"
    if row["HADM_ID"] is None:
        return "no admission"
    if row["HADM_ID"] not in admissions:
        return "an admission that ADMISSIONS lacks"
    return "a newborn's" if admissions[row["HADM_ID"]].newborn else None


def is_error(row: dict) -> bool:
    """Returns whether a physician flagged the note as an error (ISERROR is 1 or empty)."""
    return mimic.identifier(row["ISERROR"] or "") == "1"
