"""The published recipe once more, as an oracle: plain Python, whole tables in memory, slow and obvious.

Written from the description of CORe's scripts (van Aken et al., EACL 2021), for MIMIC-III, with nothing of `jaxlora` in
it. It does what they do on the pandas of their day, mistakes included, with three exceptions that pandas leaves open
or the release does not have: rows of one date are taken in the order of ROW_ID (theirs may come in any order), a line
that ends as on Windows is a line, and the shuffle of each split is left out.
"""

import csv
import functools
import gzip
from datetime import datetime
from fractions import Fraction
from pathlib import Path

csv.field_size_limit(2**30)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    """All rows of NAME.csv or NAME.csv.gz, by upper-case column names; an empty cell is ""."""
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.gz"
    opened = plain.open(encoding="utf-8", newline="") if plain.exists() else gzip.open(packed, "rt", newline="")
    with opened as file:
        rows = list(csv.reader(file))
    header = [column.upper() for column in rows[0]]
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


@functools.cache
def admission_notes(folder: Path) -> list[dict[str, str]]:
    """HADM_ID, SUBJECT_ID and TEXT of every admission with an admission note, by HADM_ID."""
    grownups = set()
    for row in table(folder, "ADMISSIONS"):
        if row["ADMISSION_TYPE"] != "NEWBORN":
            grownups.add(row["HADM_ID"])

    summaries = []
    for row in table(folder, "NOTEEVENTS"):
        if row["HADM_ID"] in grownups and row["TEXT"] != "" and row["CATEGORY"] == "Discharge summary":
            summaries.append(row | {"TEXT": row["TEXT"].replace("\r\n", "\n")})
    summaries.sort(key=lambda row: (row["CHARTDATE"], int(row["ROW_ID"])))

    # Of equal texts the last one stays.
    without_duplicates, seen = [], set()
    for row in reversed(summaries):
        if row["TEXT"] not in seen:
            seen.add(row["TEXT"])
            without_duplicates.insert(0, row)

    texts: dict[str, list[str]] = {}
    reports: dict[str, dict[str, str]] = {}
    for row in without_duplicates:
        texts.setdefault(row["HADM_ID"], []).append(row["TEXT"])
        if row["DESCRIPTION"] == "Report":
            reports[row["HADM_ID"]] = row

    notes = []
    for admission in sorted(texts, key=int):
        if admission in reports:
            text = admission_text("\n\n".join(texts[admission]).strip())
            if text is not None:
                notes.append({"HADM_ID": admission, "SUBJECT_ID": reports[admission]["SUBJECT_ID"], "TEXT": text})
    return notes


def admission_text(summary: str) -> str | None:
    """The eight sections, or None where complaint, illness and history are all empty."""
    encoded = summary.replace("\n", "\\n")
    complaint = section(encoded, "chief complaint:")
    illness = section(encoded, "present illness:")
    history = section(encoded, "medical history:")
    if complaint == "" and illness == "" and history == "":
        return None
    blocks = [
        "CHIEF COMPLAINT: " + complaint,
        "PRESENT ILLNESS: " + illness,
        "MEDICAL HISTORY: " + history,
        "MEDICATION ON ADMISSION: " + section(encoded, "medications on admission:"),
        "ALLERGIES: " + section(encoded, "allergies:"),
        "PHYSICAL EXAM: " + section(encoded, "physical exam:"),
        "FAMILY HISTORY: " + section(encoded, "family history:"),
        "SOCIAL HISTORY: " + section(encoded, "social history:"),
    ]
    return "\n\n".join(blocks)


def section(encoded: str, heading: str) -> str:
    """The shortest text from behind the heading, one character at least, to a blank line and the next heading."""
    lowered = encoded.lower()
    assert len(lowered) == len(encoded)
    begin = lowered.find(heading)
    while begin >= 0:
        start = begin + len(heading)
        end = encoded.find("\\n\\n", start + 1)
        while end >= 0:
            if is_heading(encoded, end + 4):
                return encoded[start:end].replace("\\n", " ").strip()
            end = encoded.find("\\n\\n", end + 1)
        begin = lowered.find(heading, begin + 1)
    return ""


def is_heading(encoded: str, start: int) -> bool:
    """Whether a colon follows, after one character or more that may stand in a heading."""
    for place in range(start, len(encoded)):
        if encoded[place] == ":" and place > start:
            return True
        if encoded[place] in "()\\|." or encoded[place].isdecimal():
            return False
    return False


def mortality(folder: Path, filtered: bool) -> list[tuple[str, str, str]]:
    """HADM_ID, text and HOSPITAL_EXPIRE_FLAG; with and without the filter of September 2021."""
    died = {row["HADM_ID"]: row["HOSPITAL_EXPIRE_FLAG"] for row in table(folder, "ADMISSIONS")}
    rows = []
    for note in admission_notes(folder):
        text = note["TEXT"]
        if filtered:
            text = without_deaths_in_two_sections(text)
            if tells_death(text):
                continue
        rows.append((note["HADM_ID"], text, died[note["HADM_ID"]]))
    return rows


def end_of_death(text: str, place: int, person: bool) -> int | None:
    """Where "[patient|pt] [had|has] expired" and its like end, if they begin here; `person` makes the first a must."""
    for who in ("patient", "pt"):
        if text[place : place + len(who)].lower() == who:
            place += len(who)
            break
    else:
        if person:
            return None
    blanks = place
    while place < len(text) and text[place].isspace():
        place += 1
    if place == blanks:
        return None
    if text[place : place + 3].lower() in ("had", "has") and text[place + 3 : place + 4].isspace():
        place += 4
    for word in ("expired", "died", "passed away", "deceased"):
        if text[place : place + len(word)].lower() == word:
            return place + len(word)
    return None


def without_deaths_in_two_sections(text: str) -> str:
    """The text without the first such wording on the line of PHYSICAL EXAM and of MEDICATION ON ADMISSION."""
    result, place = "", 0
    while place < len(text):
        for heading in ("physical exam:", "medication on admission:"):
            if text[place : place + len(heading)].lower() == heading:
                found = first_death_on_the_line(text, place + len(heading))
                if found:
                    result += text[place : found[0]]
                    place = found[1]
                    break
        else:
            result += text[place]
            place += 1
    return result


def first_death_on_the_line(text: str, place: int) -> tuple[int, int] | None:
    while place < len(text):
        end = end_of_death(text, place, person=False)
        if end is not None:
            return place, end
        if text[place] == "\n":
            return None
        place += 1
    return None


def tells_death(text: str) -> bool:
    if any(end_of_death(text, place, person=True) is not None for place in range(len(text))):
        return True
    return any(words in text.lower() for words in ("he expired", "pronounced expired", "time of death"))


def length_of_stay(folder: Path) -> list[tuple[str, str, int]]:
    """HADM_ID, text and class of the stay in days, of those who did not die; rounded half to even, as NumPy does."""
    label = {}
    for row in table(folder, "ADMISSIONS"):
        stay = datetime.fromisoformat(row["DISCHTIME"]) - datetime.fromisoformat(row["ADMITTIME"])
        tenths = round(Fraction(stay.days * 86400 + stay.seconds, 8640))
        if row["HOSPITAL_EXPIRE_FLAG"] == "0":
            label[row["HADM_ID"]] = 0 if tenths <= 30 else 1 if tenths <= 70 else 2 if tenths <= 140 else 3
    return [(n["HADM_ID"], n["TEXT"], label[n["HADM_ID"]]) for n in admission_notes(folder) if n["HADM_ID"] in label]


def diagnoses(folder: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    """HADM_ID, text and comma-joined categories; and all categories in order of first appearance."""

    def cut(code):
        return code[:4] if code[0] in ("V", "E") else code[:3]

    return _coded(folder, "DIAGNOSES_ICD", cut)


def procedures(folder: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The same of procedures, whose codes are read as whole numbers."""
    return _coded(folder, "PROCEDURES_ICD", lambda code: str(int(code))[:3])


def _coded(folder: Path, name: str, cut):
    every, of_admission = [], {}
    for row in table(folder, name):
        if row["ICD9_CODE"] == "":
            continue
        category = cut(row["ICD9_CODE"])
        if category not in every:
            every.append(category)
        codes = of_admission.setdefault(row["HADM_ID"], [])
        if category not in codes:
            codes.append(category)
    rows = [
        (note["HADM_ID"], note["TEXT"], ",".join(of_admission[note["HADM_ID"]]))
        for note in admission_notes(folder)
        if note["HADM_ID"] in of_admission
    ]
    return rows, every
