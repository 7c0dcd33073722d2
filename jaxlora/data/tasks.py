"""The outcome tasks of the paper, and the corpus of step 1, from the tables of MIMIC-III."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlora.data import mimic
from jaxlora.data.examples import Example, Stream, Task, keyed, split_of
from jaxlora.data.notes import AdmissionNote, is_error

STAYS = ("<=3 days", "3-7 days", "7-14 days", ">14 days")

_DEATH = r"(?:had\s|has\s)?(?:expired|died|passed away|deceased)"
# In these two sections the wording is a heading's leftover, so it goes and the note stays.
_DEATH_IN_SECTION = re.compile(
    rf"((?:PHYSICAL EXAM|MEDICATION ON ADMISSION):[^\n]*?)(?:(?:patient|pt)?\s+{_DEATH})", re.IGNORECASE
)
_DEATH_ELSEWHERE = re.compile(rf"(?:patient|pt)\s+{_DEATH}|he expired|pronounced expired|time of death", re.IGNORECASE)


@dataclass(frozen=True)
class Cohort:
    """The tables of one MIMIC-III folder, and how its patients are split and named."""

    folder: Path
    admissions: dict[str, mimic.Admission]
    split: object
    key: bytes

    def example(self, note: AdmissionNote, text: str, label: int | tuple[int, ...]) -> Example:
        """Returns the example of an admission note, under keyed identifiers."""
        return self.row(f"admission:{note.admission}", note.patient, text, label)

    def row(self, id: str, patient: str, text: str, label: None | int | tuple[int, ...]) -> Example:
        """Returns an example in the split of its patient, under keyed identifiers."""
        name = keyed(self.key, f"patient:{patient}")
        return Example(keyed(self.key, id), name, text, label, split_of(patient, self.split))


def mortality(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str]) -> tuple[Task, list[Example]]:
    """Returns in-hospital mortality, without the notes that tell the death (CORe's filter of September 2021)."""
    examples = []
    for note in notes:
        text = without_death(note.text)
        if text is None:
            flow["admissions: the note tells the death"] += 1
            continue
        examples.append(cohort.example(note, text, int(cohort.admissions[note.admission].died)))
    return Task("mortality", "binary", ("survived", "died")), examples


def without_death(text: str) -> str | None:
    """Returns an admission note without death wording in its exam and medication; None when it stands elsewhere."""
    text = _DEATH_IN_SECTION.sub(r"\1", text)
    return None if _DEATH_ELSEWHERE.search(text) else text


def length_of_stay(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str]) -> tuple[Task, list[Example]]:
    """Returns the length of the hospital stay of survivors, in four classes of days rounded to 0.1 (CORe)."""
    examples = []
    for note in notes:
        admission = cohort.admissions[note.admission]
        if admission.died:
            flow["admissions: died in hospital"] += 1
            continue
        examples.append(cohort.example(note, note.text, stay(admission.days)))
    return Task("length_of_stay", "multiclass", STAYS), examples


def stay(days: float) -> int:
    """Returns the class of a stay: up to 3, 7 or 14 days, or more."""
    return sum(round(days, 1) > limit for limit in (3, 7, 14))


def diagnoses(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str]) -> tuple[Task, list[Example]]:
    """Returns the ICD-9 diagnosis categories: 3 characters, 4 for E codes.

    CORe cuts V codes to 4 characters too, which splits their categories; and it takes its labels from every
    admission of the table, where these are the ones that training patients have.
    """
    return _coded(cohort, notes, flow, "diagnoses", "DIAGNOSES_ICD")


def procedures(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str]) -> tuple[Task, list[Example]]:
    """Returns the first 3 characters of ICD-9 procedure codes; unlike CORe, with the zeros they begin with."""
    return _coded(cohort, notes, flow, "procedures", "PROCEDURES_ICD")


def category(code: str) -> str:
    """Returns the category of an ICD-9 code written without its dot."""
    return code[: 4 if code.startswith("E") else 3]


def _coded(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str], name: str, table: str):
    codes = mimic.icd_codes(cohort.folder, table)
    coded = [(note, {category(code) for code in codes.get(note.admission, ())}) for note in notes]
    train = [found for note, found in coded if split_of(note.patient, cohort.split) == "train"]
    labels = tuple(sorted(set().union(*train)))
    index = {label: i for i, label in enumerate(labels)}
    examples = []
    for note, found in coded:
        if not found:
            flow["admissions: no code"] += 1
            continue
        flow["codes: of no training patient"] += len(found - index.keys())
        examples.append(cohort.example(note, note.text, tuple(sorted(index[c] for c in found & index.keys()))))
    return Task(name, "multilabel", labels), examples


def corpus(cohort: Cohort, flow: Counter[str]) -> tuple[Task, Stream]:
    """Returns the step-1 corpus: every note but flagged errors, split by patient like the tasks.

    Splitting by patient keeps every note of a test patient out of language-model training; the paper splits by note.
    """
    return Task("notes", "lm"), Stream(lambda: _corpus(cohort, flow))


def _corpus(cohort: Cohort, flow: Counter[str]) -> Iterator[Example]:
    counts = Counter()
    for number, row in mimic.note_events(cohort.folder, ("ROW_ID", "SUBJECT_ID", "ISERROR", "TEXT")):
        counts["notes: read"] += 1
        if is_error(row):
            counts["notes: flagged as an error"] += 1
        elif not (row["TEXT"] or "").strip():
            counts["notes: no text"] += 1
        elif row["SUBJECT_ID"] is None:
            counts["notes: no patient"] += 1
        else:
            yield cohort.row(f"note:{row['ROW_ID'] or number}", row["SUBJECT_ID"], row["TEXT"], None)
    # The builder reads the corpus several times, side by side; only a complete reading tells its counts.
    flow.clear()
    flow.update(counts)
