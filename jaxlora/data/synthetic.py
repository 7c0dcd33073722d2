"""A generated MIMIC-III for tests and demonstrations: its format and its quirks, nobody's data.

Every admission has a latent severity that is never written down. It chooses the wording of the note (how it began,
how the patient looks, what was found), and the outcome is drawn from it: death from a logistic model, length of stay
from a log-normal one. So outcomes can be learnt from the wording, and cannot be known from it.
"""

import math
import random
import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from jaxlora import files
from jaxlora.data import synthetic_prose as prose
from jaxlora.data import synthetic_words as words

COLUMNS = {
    "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
    "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION "
    "DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS "
    "HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
    "NOTEEVENTS": "ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME CATEGORY DESCRIPTION CGID ISERROR TEXT",
    "DIAGNOSES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "PROCEDURES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
}


@dataclass(frozen=True)
class _Stay:
    """One admission before it is written: who, when, how ill, and the words that are filled into its notes."""

    patient: int
    admission: int
    admitted: datetime
    discharged: datetime
    newborn: bool
    died: bool
    severity: float
    diagnoses: tuple[str, ...]
    procedures: tuple[str, ...]
    facts: dict[str, str]


class _Tables:
    """The lines of the five tables, quoted as in the full release: text in quotes, numbers bare, nulls empty."""

    def __init__(self):
        self._lines = {name: [",".join(f'"{c}"' for c in columns.split())] for name, columns in COLUMNS.items()}

    def add(self, name: str, *cells: str | int | datetime | None) -> None:
        self._lines[name].append(",".join([str(len(self._lines[name])), *(_quoted(cell) for cell in cells)]))

    def write(self, folder: Path) -> None:
        for name, lines in self._lines.items():
            files.write(folder / f"{name}.csv", "\n".join(lines) + "\n")


def _quoted(cell: str | int | datetime | None) -> str:
    if isinstance(cell, str):
        return '"' + cell.replace('"', '""') + '"'
    return "" if cell is None else str(cell)


def write_mimic3(folder: str | Path, patients: int, seed: int) -> None:
    """Writes the five MIMIC-III tables that `prepare` reads, the same bytes for the same arguments.

    About one patient in five has several admissions, one admission in four ends in death, one patient in fifty is a
    newborn. Among the notes are addenda, flagged errors, repeated texts, notes without admission and with CRLF.

    Args:
      folder: where NOTEEVENTS.csv and the others are written.
      patients: how many.
      seed: of everything that is drawn.
    """
    rng = random.Random(seed)
    tables = _Tables()
    for number in range(patients):
        sex, age = rng.choice("MF"), min(max(round(rng.gauss(66, 14)), 19), 89)
        stays = _stays(rng, 10000 + 7 * number, 100001 + 4 * number, sex, age, newborn=number % 50 == 49)
        _write_patient(tables, stays, sex, age)
        for stay in stays:
            _write_stay(tables, rng, stay)
            _write_notes(tables, rng, stay)
    tables.write(Path(folder))


def _stays(rng: random.Random, patient: int, admission: int, sex: str, age: int, newborn: bool) -> list[_Stay]:
    admitted = datetime(2100 + rng.randrange(95), rng.randint(1, 12), rng.randint(1, 28), rng.randrange(24), 15)
    stays = []
    for number in range(1 if newborn else rng.choices((1, 2, 3), (80, 15, 5))[0]):
        stay = _stay(rng, patient, admission + number, admitted, sex, age, newborn)
        stays.append(stay)
        if stay.died:
            break
        admitted = stay.discharged + timedelta(days=rng.randint(20, 400))
    return stays


def _stay(rng, patient: int, admission: int, admitted: datetime, sex: str, age: int, newborn: bool) -> _Stay:
    severity = rng.gauss(0, 1) - 2 * newborn
    died = rng.random() < 1 / (1 + math.exp(1.9 - 2.7 * severity))
    days = math.exp(2.2 + 0.9 * severity + rng.gauss(0, 0.25))
    complaints, code, procedures, findings = rng.choice(words.PROBLEMS)
    past = rng.sample(words.COMORBIDITIES, rng.randint(1, 3))
    if severity + rng.gauss(0, 0.8) > 1:
        past[0] = rng.choice(words.SEVERE_COMORBIDITIES)
    diagnoses = [code, *(code for code, _, _ in past)]
    if severity + rng.gauss(0, 0.5) > 0.6:
        diagnoses += rng.sample(words.SEVERE_CODES, 2)
    if complaints[0] == "s/p fall":
        diagnoses.append(rng.choice(("E8889", "E8859")))

    def tiered(tiers):
        """The alternatives that fit the severity, give or take."""
        felt = severity + rng.gauss(0, 0.35)
        tier = tiers[(felt > -0.3) + (felt > 0.7)]
        return tier if isinstance(tier, str) else rng.choice(tier)

    facts = {
        "age": str(age),
        "sex": sex,
        "past": ", ".join(rng.choice(names) for _, names, _ in past),
        "medications": ", ".join(rng.choice(drugs) for _, _, drugs in past),
        "complaint": rng.choice(complaints),
        "finding": tiered(findings),
        "course": tiered(words.COURSE),
        "appearance": tiered(words.APPEARANCE),
        "lungs": tiered(words.LUNGS),
        "oxygen": tiered(words.OXYGEN),
        "baseline": tiered(words.BASELINE),
        "abdomen": rng.choice(words.ABDOMEN),
        "heart": rng.choice(words.HEART),
        "hr": str(round(86 + 13 * severity + rng.gauss(0, 11))),
        "bp": f"{round(126 - 13 * severity + rng.gauss(0, 14))}/{round(68 - 6 * severity + rng.gauss(0, 8))}",
        "sat": str(min(100, round(96 - 2 * severity + rng.gauss(0, 2)))),
    }
    kept = procedures[: 1 + (severity > -0.3) + (severity > 0.7)] if rng.random() < 0.9 else ()
    left = admitted + timedelta(hours=round(24 * days))
    return _Stay(patient, admission, admitted, left, newborn, died, severity, tuple(diagnoses), kept, facts)


def _write_patient(tables: _Tables, stays: list[_Stay], sex: str, age: int) -> None:
    born = stays[0].admitted - timedelta(days=0 if stays[0].newborn else 365 * age + 100)
    death = f"{stays[-1].discharged}" if stays[-1].died else None
    tables.add("PATIENTS", stays[0].patient, sex, f"{born:%Y-%m-%d} 00:00:00", death, death, None, int(stays[-1].died))


def _write_stay(tables: _Tables, rng: random.Random, stay: _Stay) -> None:
    tables.add(
        "ADMISSIONS",
        stay.patient,
        stay.admission,
        f"{stay.admitted}",
        f"{stay.discharged}",
        f"{stay.discharged}" if stay.died else None,
        "NEWBORN" if stay.newborn else rng.choices(("EMERGENCY", "URGENT", "ELECTIVE"), (80, 8, 12))[0],
        "EMERGENCY ROOM ADMIT",
        "DEAD/EXPIRED" if stay.died else rng.choice(("HOME", "SNF", "HOME HEALTH CARE")),
        rng.choice(("Medicare", "Private", "Medicaid")),
        rng.choice(("ENGL", None)),
        None,
        rng.choice(("MARRIED", "SINGLE", "WIDOWED")),
        "UNKNOWN/NOT SPECIFIED",
        None,
        None,
        stay.facts["complaint"].upper(),
        int(stay.died),
        1,
    )
    for table, codes in (("DIAGNOSES_ICD", stay.diagnoses), ("PROCEDURES_ICD", stay.procedures)):
        for number, code in enumerate(codes, start=1):
            tables.add(table, stay.patient, stay.admission, number, code)


def _write_notes(tables: _Tables, rng: random.Random, stay: _Stay) -> None:
    def note(day: datetime, category: str, description: str, text: str, admission=stay.admission, error=None):
        timed = None if category == "Discharge summary" else f"{day}"
        caregiver = None if timed is None else 14000 + rng.randrange(9)
        text = text.replace("\n", "\r\n") if rng.random() < 0.02 else text
        date = f"{day:%Y-%m-%d} 00:00:00"
        tables.add(
            "NOTEEVENTS", stay.patient, admission, date, timed, timed, category, description, caregiver, error, text
        )

    summary = _summary(rng, stay)
    note(stay.discharged, "Discharge summary", "Report", summary)
    if rng.random() < 0.03:
        later = stay.discharged + timedelta(days=2)
        note(later, "Discharge summary", "Addendum", "Addendum:\nPt seen by PT, cleared. Med list reconciled.")
    if rng.random() < 0.02:
        note(stay.discharged + timedelta(days=1), "Discharge summary", "Report", summary)
    for _ in range(rng.randint(1, 2)):
        flagged = 1 if rng.random() < 0.02 else None
        text = _fill(rng, rng.choice(words.NURSING), words.WORDS, stay.facts)
        note(stay.admitted + timedelta(hours=rng.randint(2, 40)), "Nursing/other", "Report", text, error=flagged)
    text = _fill(rng, rng.choice(words.RADIOLOGY), words.WORDS, stay.facts)
    outpatient = rng.random() < 0.1
    note(stay.admitted, "Radiology", "CHEST (PORTABLE AP)", text, admission=None if outpatient else stay.admission)


def _summary(rng: random.Random, stay: _Stay) -> str:
    story = f"{rng.choice(words.OPENINGS)} {{course}} {{Finding}}. Pt {{denies}} {{negative}}."
    exam = rng.choice(
        (
            "VS: HR {hr} BP {bp} sat {sat}% {oxygen}. {appearance}. {heart}. {lungs}.",
            "{appearance}. P {hr}, {bp}, {sat}% on {oxygen}. Lungs: {lungs}. CV: {heart}.",
            "Gen: {appearance}. Resp: {lungs}, {sat}% {oxygen}. HR {hr}, BP {bp}. {abdomen}.",
        )
    )
    # What the filter of the mortality task is for: wording of death in the admission part.
    if stay.died and rng.random() < 0.02:
        exam += " Pt expired."
    if stay.died and rng.random() < 0.02:
        story += " Pt expired in the ICU."
    ending = "Pt expired on the ward." if stay.died else "Discharged in stable condition."
    sections = (
        ("Allergies", rng.choice(words.DRUG_ALLERGIES)),
        ("Attending", f"[**First Name3 (LF) {rng.randrange(99)}**]"),
        ("Chief Complaint", "{complaint}"),
        ("Major Surgical or Invasive Procedure", "see below" if stay.procedures else "None"),
        ("History of Present Illness", story),
        ("Past Medical History", "{past}"),
        ("Social History", "{baseline}. " + rng.choice(words.HABITS) + "."),
        ("Family History", rng.choice(words.RELATIVES)),
        ("Physical Exam", exam),
        ("Brief Hospital Course", rng.choice(words.HOSPITAL_COURSES) + " " + ending),
        ("Medications on Admission", "{medications}"),
        ("Discharge Medications", "1. {medications}" if not stay.died else "None"),
        ("Discharge Disposition", "Expired" if stay.died else rng.choice(("Home", "Extended Care"))),
    )
    facts = stay.facts | {"Finding": stay.facts["finding"][0].upper() + stay.facts["finding"][1:]}
    dates = f"Admission Date: [**{stay.admitted:%Y-%m-%d}**]     Discharge Date: [**{stay.discharged:%Y-%m-%d}**]"
    body = [dates, f"Date of Birth: [**2080-1-1**]     Sex: {facts['sex']}", "Service: MEDICINE"]
    for heading, template in sections:
        body.append(f"{heading}:\n" + textwrap.fill(_fill(rng, template, words.WORDS, facts), 78))
    return "\n\n".join(body) + "\n"


def plain_english(sentences: int, seed: int) -> list[str]:
    """Returns documents of simple English prose, of 4 to 7 sentences on one topic each.

    A base model and a tokenizer made from them know English and have never seen a clinical note.

    Args:
      sentences: how many in all.
      seed: of everything that is drawn.
    """
    rng = random.Random(seed)
    documents = []
    while sentences > 0:
        templates = prose.TOPICS[rng.choice(sorted(prose.TOPICS))]
        chosen = rng.sample(templates, min(rng.randint(4, 7), sentences))
        documents.append(_joined(rng, [_sentence(rng, template) for template in chosen]))
        sentences -= len(chosen)
    return documents


def lists_of_words(notes: list[str], times: int, seed: int) -> list[str]:
    """Returns documents that list words, in no order and in many ways: "wheezes, 98% and: stent".

    A LLaMA has met the words of medicine, and colons and line breaks, before it meets a note. These documents give a
    small one the words of `notes` that occur three times or more, and nothing of how a note is written.

    Args:
      notes: where the words come from.
      times: how often each word is listed.
      seed: of the order.
    """
    rng = random.Random(seed)
    counts = Counter(word for note in notes for word in note.split())
    words = sorted(word for word, count in counts.items() if count >= 3) * times
    rng.shuffle(words)
    breaks = (" ", " ", " ", ", ", ": ", ". ", "/", "\n", "\n", "\n\n", ":\n", ".\n\n", " and ", " - ")
    documents = []
    for start in range(0, len(words), 30):
        separated = [part for word in words[start : start + 30] for part in (word, rng.choice(breaks))]
        documents.append("".join(separated[:-1]))
    return documents


def _joined(rng: random.Random, sentences: list[str]) -> str:
    """One document: sentences on one line, on lines of their own, or in paragraphs."""
    parts = [sentences[0]]
    for sentence in sentences[1:]:
        parts += [rng.choice((" ", " ", "\n", "\n\n")), sentence]
    return "".join(parts)


def _sentence(rng: random.Random, template: str) -> str:
    def filled(match: re.Match) -> str:
        slot = match[1].removesuffix("_cap")
        word = rng.choice(prose.WORDS[slot])
        return word[0].upper() + word[1:] if match[1].endswith("_cap") else word

    return re.sub(r"\{(\w+)\}", filled, template)


def _fill(rng: random.Random, template: str, choices: dict[str, list[str]], facts: dict[str, str]) -> str:
    """Fills every `{slot}` with its fact, which may have slots of its own, or else with one of its choices."""

    def filled(match: re.Match) -> str:
        slot = match[1]
        return _fill(rng, facts[slot], choices, {}) if slot in facts else rng.choice(choices[slot])

    return re.sub(r"\{(\w+)\}", filled, template)
