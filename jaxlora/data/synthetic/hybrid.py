"""The hybrid cohort: the public MIMIC-III demo, whose tables are real, with notes made of public visit notes.

The demo has every table but the notes. These are the visit notes of ACI-Bench under the headings of a discharge
summary, with the marks of de-identification and every quirk of `quirks`, so that what runs on the hybrid runs on the
full release. Fates are known as in a generated cohort, labels from the tables.
"""

import csv
import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from jaxlora import files
from jaxlora.data.synthetic import answers, codes, quirks
from jaxlora.data.synthetic.cohort import Stay
from jaxlora.data.synthetic.layout import MIMIC3, Table
from jaxlora.data.synthetic.mimic3 import INVASIVE, note_row
from jaxlora.data.synthetic.notes import KINDS, Note, other_notes, prose
from jaxlora.data.synthetic.summaries import Summaries
from jaxlora.data.synthetic.visits import Visit, refiled
from jaxlora.errors import UserError

_TABLES = (
    "ADMISSIONS DIAGNOSES_ICD D_ICD_DIAGNOSES D_ICD_PROCEDURES D_ITEMS ICUSTAYS PATIENTS PROCEDUREEVENTS_MV "
    "PROCEDURES_ICD"
).split()
_VISITS = ("train", "valid", "clinicalnlp_taskB_test1")
# Headings of the visit notes, in capitals on lines of their own, and those that a discharge summary has for them.
_HEADINGS = {
    "Allergies": ("ALLERGIES",),
    "Chief Complaint": ("CHIEF COMPLAINT", "CC"),
    "History of Present Illness": ("HISTORY OF PRESENT ILLNESS", "HPI", "SUBJECTIVE"),
    "Past Medical History": ("PAST MEDICAL HISTORY", "MEDICAL HISTORY", "PAST HISTORY", "SURGICAL HISTORY"),
    "Social History": ("SOCIAL HISTORY",),
    "Family History": ("FAMILY HISTORY",),
    "Review of Systems": ("REVIEW OF SYSTEMS",),
    "Physical Exam": ("PHYSICAL EXAM", "PHYSICAL EXAMINATION", "EXAM", "VITALS", "VITALS REVIEWED"),
    "Pertinent Results": ("RESULTS",),
    "Brief Hospital Course": ("ASSESSMENT AND PLAN", "ASSESSMENT", "IMPRESSION", "PLAN"),
    "Medications on Admission": ("MEDICATIONS", "CURRENT MEDICATIONS"),
    "Discharge Instructions": ("INSTRUCTIONS",),
}
_ABSENT = {
    "Allergies": "No Known Allergies to Drugs",
    "Chief Complaint": "Follow-up",
    "History of Present Illness": "As above.",
    "Past Medical History": "As above.",
    "Social History": "Noncontributory.",
    "Family History": "Noncontributory.",
    "Physical Exam": "Unremarkable.",
    "Brief Hospital Course": "Treated and observed.",
    "Medications on Admission": "None.",
}
_NAMES = (
    (re.compile(r"\b[A-Z][a-z]+ [A-Z][a-z]+(?= is an? \d)"), "[**Known firstname {}**] [**Known lastname {}**]"),
    (re.compile(r"(?<=Dr\. )[A-Z][a-z]+"), "[**Last Name (STitle) {}**]"),
    (re.compile(r"(?<=M[rs]\. )[A-Z][a-z]+"), "[**Known lastname {}**]"),
    (re.compile(r"(?<=Mrs\. )[A-Z][a-z]+"), "[**Known lastname {}**]"),
)
# The definition of the ventilation task: who is in it, and which diagnoses keep an admission out.
_EXCLUDED = ("14", "3589", "3590", "3591", "35801", "941", "V59")
_GRACE = timedelta(hours=6)


@dataclass
class _Visit(Summaries):
    """Summaries that say what the next visit note says."""

    visits: Iterator[dict[str, str]] = field(default_factory=lambda: iter(()))

    def said(self) -> dict[str, str]:
        return next(self.visits)


def write_hybrid(folder: Path, source: str | Path, seed: int, compressed: bool) -> None:
    """Writes the tables of the demo as they are, NOTEEVENTS, and the answer key.

    Args:
      folder: where they are written.
      source: the folder with mimiciii-demo-1.4 and clinical-visit-note-corpus.
      seed: of everything that is drawn.
      compressed: whether NOTEEVENTS is.

    Raises:
      UserError: a file of the source is missing.
    """
    demo = Path(source) / "mimiciii-demo-1.4"
    corpus = Path(source) / "clinical-visit-note-corpus" / "aci-bench"
    needed = [demo / f"{name}.csv" for name in _TABLES] + [corpus / f"{name}.csv" for name in _VISITS]
    for path in needed:
        if not source or not path.is_file():
            raise UserError(f"--source: {path.parent} has no {path.name}; give the folder of the two public data sets")
    tally, rng = answers.Tally(), random.Random(f"hybrid:{seed}")
    for name in _TABLES:
        shutil.copyfile(demo / f"{name}.csv", folder / f"{name}.csv")
        tally.tables[name] = len(_rows(demo, name))
    visits = _made(rng, demo, itertools.cycle(_visit_notes(corpus, rng)), seed)
    with Table(folder / ("NOTEEVENTS.csv.gz" if compressed else "NOTEEVENTS.csv"), True, row_id=1) as table:
        table.header(MIMIC3["NOTEEVENTS"].lower())
        for visit in visits:
            for note in visit.notes:
                table.add(*note_row(rng, note))
        tally.tables["NOTEEVENTS"] = table.rows
    lines = []
    for visit in visits:
        found = tally.visit(visit, {mode: answers.categories(visit, mode) for mode in answers.MODES})
        lines.append({"admission": str(visit.stay.admission), "patient": str(visit.stay.patient), **found})
    _order_labels(tally, demo)
    files.write(folder / "answers.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    files.write_json(folder / "answers.json", tally.summary("mimic3"))


def _made(rng: random.Random, demo: Path, texts: Iterator[dict[str, str]], seed: int) -> list[Visit]:
    """Returns every admission of the demo with its notes, each quirk at the first one that can have it."""
    stays = _stays(demo)
    taken = {stay.admission for stay in stays}
    unused = next(number for number in itertools.count(100_001) if number not in taken)
    diagnoses, procedures, labels = _codes(demo, "DIAGNOSES_ICD"), _codes(demo, "PROCEDURES_ICD"), _ventilated(demo)
    left, categories = list(quirks.QUIRKS), list(KINDS)
    visits, carried = [], []
    for number, stay in enumerate(stays):
        more = number + 1 < len(stays) and stays[number + 1].patient == stay.patient
        quirk = quirks.plain
        if not carried:
            quirk = next((each for each in left if more or each not in quirks.NEEDS_NEXT), quirks.plain)
            left = [each for each in left if each is not quirk]
        found = _Visit(rng, stay, prose(seed, "sparse"), 1000 * (number + 1), unused, visits=texts)
        quirk(found)
        category = categories.pop() if categories else ""
        others = other_notes(rng, stay, found.source, found.number, category)
        own = diagnoses.get(stay.admission, []), procedures.get(stay.admission, [])
        notes: list[Note] = [*others, *found.notes, *(refiled(note, stay) for note in carried)]
        carried = found.notes[-1:] if found.carried else []
        label = labels.get(stay.admission)
        visits.append(Visit(stay, "", "", *own, [], notes, found.correct, found.paper, label))
    return visits


def _rows(demo: Path, name: str) -> list[dict[str, str]]:
    with (demo / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _stays(demo: Path) -> list[Stay]:
    """Returns the admissions of the demo by patient and time."""
    sexes = {row["subject_id"]: row["gender"] for row in _rows(demo, "PATIENTS")}
    result = [
        Stay(
            patient=int(row["subject_id"]),
            admission=int(row["hadm_id"]),
            admitted=datetime.fromisoformat(row["admittime"]),
            discharged=datetime.fromisoformat(row["dischtime"]),
            newborn=row["admission_type"] == "NEWBORN",
            died=row["hospital_expire_flag"] == "1",
            severity=0,
            diagnoses=(),
            procedures=(),
            facts={"sex": sexes[row["subject_id"]], "complaint": row["diagnosis"].lower()},
        )
        for row in _rows(demo, "ADMISSIONS")
    ]
    return sorted(result, key=lambda stay: (stay.patient, stay.admitted))


def _codes(demo: Path, name: str) -> dict[int, list[tuple[None, str]]]:
    result: dict[int, list[tuple[None, str]]] = {}
    for row in _rows(demo, name):
        result.setdefault(int(row["hadm_id"]), []).append((None, row["icd9_code"]))
    return result


def _order_labels(tally: answers.Tally, demo: Path) -> None:
    """Puts the paper's labels in the order in which the tables have them, which are not sorted by admission."""
    for kind, name in (("diag", "DIAGNOSES_ICD"), ("proc", "PROCEDURES_ICD")):
        cut = codes.CUTS["paper"][kind]
        tally.labels[f"{kind}_paper"] = dict.fromkeys(cut(row["icd9_code"]) for row in _rows(demo, name))


def _ventilated(demo: Path) -> dict[int, int]:
    """Returns the label of the ventilation task of the admissions that are in it, from PROCEDUREEVENTS_MV alone."""
    born = {row["subject_id"]: datetime.fromisoformat(row["dob"]) for row in _rows(demo, "PATIENTS")}
    barred = {row["hadm_id"] for row in _rows(demo, "DIAGNOSES_ICD") if row["icd9_code"].startswith(_EXCLUDED)}
    spans: dict[str, dict[str, list[datetime]]] = {}
    for row in _rows(demo, "PROCEDUREEVENTS_MV"):
        if row["itemid"] == str(INVASIVE) and row["cancelreason"] == "0":
            times = [datetime.fromisoformat(row[column]) for column in ("starttime", "endtime")]
            spans.setdefault(row["hadm_id"], {}).setdefault(row["icustay_id"], []).extend(times)
    result = {}
    for row in _rows(demo, "ADMISSIONS"):
        id, age = row["hadm_id"], datetime.fromisoformat(row["admittime"]) - born[row["subject_id"]]
        if id not in spans or id in barred or age.days < 18 * 365.25 or "DONOR" in row["diagnosis"].upper():
            continue
        times = min(spans[id].values(), key=min)
        span = max(times) + _GRACE - min(times)
        if span >= timedelta(days=2):
            result[int(id)] = int(span >= timedelta(days=7))
    return result


def _visit_notes(corpus: Path, rng: random.Random) -> list[dict[str, str]]:
    """Returns what every visit note says under the headings of a discharge summary."""
    result = []
    for name in _VISITS:
        with (corpus / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            result += [_reheaded(row["note"].replace("\r\n", "\n"), rng) for row in csv.DictReader(file)]
    return result


def _reheaded(text: str, rng: random.Random) -> dict[str, str]:
    for pattern, tag in _NAMES:
        numbers = tuple(rng.randrange(3000) for _ in range(2))
        text = pattern.sub(tag.format(*numbers), text)
    parts, current = {}, ""
    for line in text.split("\n"):
        name = line.strip().rstrip(":")
        if name in _SKELETON:
            current = _SKELETON[name]
        else:
            parts.setdefault(current, []).append(line)
    said = {heading: "\n".join(lines).strip() for heading, lines in parts.items()}
    return {
        heading: said.get(heading) or _ABSENT[heading]
        for heading in _HEADINGS
        if said.get(heading) or heading in _ABSENT
    }


_SKELETON = {name: heading for heading, names in _HEADINGS.items() for name in names}
