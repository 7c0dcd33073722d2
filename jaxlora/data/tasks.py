"""The outcome tasks of the paper, from the tables of MIMIC-III or MIMIC-IV.

Each task comes in two modes where they differ: "correct", and "paper", which does as the published scripts do. `TASKS`
has them by release and by name of the dataset.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ml_collections import ConfigDict

from jaxlora.data import beep, icd, splits, ventilation
from jaxlora.data.examples import Example, Task, keyed, named
from jaxlora.data.mimic import Admission, Release
from jaxlora.data.notes import AdmissionNote
from jaxlora.errors import UserError

STAYS = ("<=3 days", "3-7 days", "7-14 days", ">14 days")
VENTILATIONS = ("<=7 days", ">7 days")

_DEATH_WORDS = ("expired", "died", "passed away", "deceased", "time of death")
_DEATH = r"(?:had\s|has\s)?(?:expired|died|passed away|deceased)"
# In these two sections the wording is a heading's leftover, so it goes and the note stays.
_DEATH_IN_SECTION = re.compile(
    rf"((?:PHYSICAL EXAM|MEDICATION ON ADMISSION):[^\n]*?)(?:(?:patient|pt)?\s+{_DEATH})", re.IGNORECASE
)
_DEATH_ELSEWHERE = re.compile(rf"(?:patient|pt)\s+{_DEATH}|he expired|pronounced expired|time of death", re.IGNORECASE)

Label = int | tuple[int, ...]
Made = tuple[Sequence[str], list[Example]]  # label names, and examples


@dataclass(frozen=True)
class Cohort:
    """The admissions of one release, and how its patients are split and named.

    Attributes:
      release: the tables. admissions: of `release.admissions()`.
      config: `mode`, `beep`, `gem` and `gem_procedures` are read.
      split_of: from a raw patient to the split, or to None for one to leave out. key: of the identifiers.
      groups: of `release.groups()`.
    """

    release: Release
    admissions: Mapping[str, Admission]
    config: ConfigDict
    split_of: Callable[[str], str | None]
    key: bytes
    groups: Mapping[str, Mapping[str, str]]

    @property
    def paper(self) -> bool:
        """Whether to do as the published scripts do."""
        return self.config.mode == "paper"

    def examples(
        self,
        rows: Iterable[tuple[AdmissionNote, str, Label]],
        flow: Counter[str],
        split: Mapping[str, str] | None = None,
    ) -> list[Example]:
        """Returns the examples of notes, texts and labels, under keyed identifiers, each in its split.

        Args:
          rows: admission note, text and label.
          flow: counts the notes of patients in no split.
          split: by admission, where it is not by patient.
        """
        result = []
        for note, text, label in rows:
            place = self.split_of(note.patient) if split is None else split[note.admission]
            if place is None:
                flow["admissions: a patient in none of the published lists"] += 1
                continue
            id, patient = (keyed(self.key, raw) for raw in (f"admission:{note.admission}", f"patient:{note.patient}"))
            result.append(Example(id, patient, text, label, place, self.groups[note.admission]))
        return result


def cohort(release: Release, config: ConfigDict, key: bytes) -> Cohort:
    """Returns the cohort of one release.

    Args:
      release: the tables.
      config: `mode`, `split`, `core_splits`, `beep`, `gem` and `gem_procedures` are read.
      key: of `load_key`.

    Raises:
      UserError: ADMISSIONS, PATIENTS or a published list is missing or malformed.
    """
    admissions = release.admissions()
    split_of = splits.splitter(release.name, config)
    return Cohort(release, admissions, config, split_of, key, release.groups(admissions))


def available(release: Release, config: ConfigDict) -> tuple[str, ...]:
    """Returns the names in `TASKS` of the datasets that a release can give; `missing` says what the others need."""
    return tuple(name for name in TASKS[release.name] if not missing(release, config, name))


def missing(release: Release, config: ConfigDict, name: str) -> str:
    """Returns what the tables and the config lack for a dataset of `TASKS`, or ""."""
    if name == "pmv" and not (config.beep and release.name == "mimic3"):
        if config.mode == "paper":
            return "config.beep, the published labels"
        return "" if release.ventilations() else f"the table {release.ventilated}"
    if release.name == "mimic4" and name in ("diag", "proc"):
        field = "gem" if name == "diag" else "gem_procedures"
        return "" if config[field] else f"config.{field}, to map ICD-10 to ICD-9"
    return ""


def make(cohort: Cohort, name: str, notes: Iterable[AdmissionNote], flow: Counter[str]) -> tuple[Task, list[Example]]:
    """Makes one dataset, under its name in the mode of the cohort.

    Args:
      cohort: the admissions. name: of `available`. notes: of the cohort. flow: counts what is left out.

    Raises:
      UserError: the release cannot give this dataset, or a table or file that it is made of is malformed.
    """
    lacking = missing(cohort.release, cohort.config, name)
    if lacking:
        full = f"{cohort.release.name}_admission/{named(name, cohort.config.mode)}"
        raise UserError(f"{full}: cannot be made without {lacking}")
    outcome = TASKS[cohort.release.name][name]
    labels, examples = outcome.make(cohort, notes, flow)
    return Task(named(name, cohort.config.mode), outcome.kind, tuple(labels)), examples


def mortality(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str], unfiltered: bool = False) -> Made:
    """Returns in-hospital mortality, without the notes that tell the death (CORe's filter of September 2021).

    Args:
      cohort: the admissions. notes: of the cohort. flow: counts what is left out.
      unfiltered: keep those notes, and the wording, as before September 2021.
    """
    rows = []
    for note in notes:
        text = note.text if unfiltered else without_death(note.text)
        if text is None:
            flow["admissions: the note tells the death"] += 1
            continue
        rows.append((note, text, int(cohort.admissions[note.admission].died)))
    return ("survived", "died"), cohort.examples(rows, flow)


def without_death(text: str) -> str | None:
    """Returns an admission note without death wording in its exam and medication; None when it stands elsewhere."""
    lowered = text.lower()
    if not any(words in lowered for words in _DEATH_WORDS):  # the expressions take a hundred times as long
        return text
    text = _DEATH_IN_SECTION.sub(r"\1", text)
    return None if _DEATH_ELSEWHERE.search(text) else text


def length_of_stay(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str]) -> Made:
    """Returns the length of the hospital stay of survivors, in four classes of days rounded to 0.1 (CORe).

    Stays that end before they begin are of the first class in paper mode, and left out in the correct one.
    """
    rows = []
    for note in notes:
        admission = cohort.admissions[note.admission]
        if admission.died:
            flow["admissions: died in hospital"] += 1
        elif admission.days < 0 and not cohort.paper:
            flow["admissions: a stay that ends before it begins"] += 1
        else:
            rows.append((note, note.text, stay(admission.days)))
    return STAYS, cohort.examples(rows, flow)


def stay(days: float) -> int:
    """Returns the class of a stay: up to 3, 7 or 14 days, or more.

    A half of a tenth is rounded to even, as NumPy does: 14.05 days are 14.0 (`round(14.05, 1)` is 14.1).
    """
    return sum(round(10 * days) > 10 * limit for limit in (3, 7, 14))


def diagnoses(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str], version: str = "9") -> Made:
    """Returns the categories of the diagnoses of one version of the ICD."""

    def categories(code: str) -> tuple[str, ...]:
        return (icd.category10(code) if version == "10" else icd.diagnosis9(code, cohort.config.mode),)

    return _coded(cohort, notes, flow, "diagnoses", {version: categories})


def procedures(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str], version: str = "9") -> Made:
    """Returns the first 3 characters of the procedures of one version of the ICD."""

    def categories(code: str) -> tuple[str, ...]:
        return (icd.category10(code) if version == "10" else icd.procedure9(code, cohort.config.mode),)

    return _coded(cohort, notes, flow, "procedures", {version: categories})


def mapped(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str], kind: str) -> Made:
    """Returns the ICD-9 categories of all "diagnoses" or "procedures", those in ICD-10 by their counterparts in
    `config.gem` or `config.gem_procedures`.

    Raises:
      UserError: the mapping has none of the ICD-10 codes, so it is of another kind.
    """
    field, cut = {"diagnoses": ("gem", icd.diagnosis9), "procedures": ("gem_procedures", icd.procedure9)}[kind]
    gem, mode = icd.Gem(cohort.config[field], field), cohort.config.mode
    known: Counter[bool] = Counter()

    def counterparts(code: str) -> tuple[str, ...]:
        known[code in gem] += 1
        return tuple(cut(found, mode) for found in gem[code])

    made = _coded(cohort, notes, flow, kind, {"9": lambda code: (cut(code, mode),), "10": counterparts})
    if known and not known[True]:
        remedy = f"set {field} to the GEM of {kind} from ICD-10 to ICD-9"
        raise UserError(f"{cohort.config[field]}: has none of the ICD-10 codes of the {kind}; {remedy}")
    return made


def _coded(
    cohort: Cohort,
    notes: Iterable[AdmissionNote],
    flow: Counter[str],
    kind: str,
    cut: dict[str, Callable[[str], tuple[str, ...]]],
) -> Made:
    """Returns a task of codes; `cut` gives the categories of a code by its version, and no other version counts.

    The labels are the sorted categories of training patients; in paper mode those of the whole table, which has
    newborns and admissions without a note, in order of first appearance.
    """
    notes = list(notes)
    found: dict[str, dict[str, None]] = {note.admission: {} for note in notes}
    seen: dict[str, None] = {}
    for admission, code, version in cohort.release.codes(kind):
        if version not in cut:
            continue
        categories = cut[version](code)
        seen.update(dict.fromkeys(categories))
        if admission in found:
            found[admission].update(dict.fromkeys(categories))
            if not categories:
                flow["codes: without a counterpart in ICD-9"] += 1
    labels = tuple(seen)
    if not cohort.paper:
        train = [found[note.admission] for note in notes if cohort.split_of(note.patient) == "train"]
        labels = tuple(sorted(set().union(*train)))
    index = {label: i for i, label in enumerate(labels)}
    rows = []
    for note in notes:
        categories = found[note.admission]
        if not categories:
            flow["admissions: no code"] += 1
            continue
        flow["codes: of no training patient"] += sum(category not in index for category in categories)
        rows.append((note, note.text, tuple(index[category] for category in categories if category in index)))
    return labels, cohort.examples(rows, flow)


def prolonged_ventilation(cohort: Cohort, notes: Iterable[AdmissionNote], flow: Counter[str]) -> Made:
    """Returns mechanical ventilation for more than 7 days, by BEEP's label file or, without one, by the tables.

    Paper mode takes the splits of the file too, which are by admission, and the texts of the mortality task.
    """
    by_admission = {note.admission: note for note in notes}
    if not (cohort.config.beep and cohort.release.name == "mimic3"):
        found = ventilation.labels(cohort.release, cohort.admissions, by_admission, flow)
        rows = [(by_admission[id], by_admission[id].text, label) for id, label in found.items()]
        return VENTILATIONS, cohort.examples(rows, flow)
    rows, split = [], {}
    for entry in beep.read(cohort.config.beep):
        flow["labels: read"] += 1
        note = by_admission.pop(entry.admission, None)
        if note is None:
            lacking = "an admission without a note" if entry.admission in cohort.admissions else "no admission"
            flow[f"labels: {lacking}"] += 1
            continue
        text = without_death(note.text) if cohort.paper else note.text
        if text is None:
            flow["admissions: the note tells the death"] += 1
            continue
        rows.append((note, text, entry.label))
        split[entry.admission] = entry.split
    flow["admissions: not in the label file"] += len(by_admission)
    return VENTILATIONS, cohort.examples(rows, flow, split if cohort.paper else None)


@dataclass(frozen=True)
class Outcome:
    """A kind of `examples.OUTCOMES`, and the function that makes labels and examples of a cohort."""

    kind: str
    make: Callable[[Cohort, Iterable[AdmissionNote], Counter[str]], Made]


_STAYS = {
    "mor": Outcome("binary", mortality),
    "mor_unfiltered": Outcome("binary", partial(mortality, unfiltered=True)),
    "los": Outcome("multiclass", length_of_stay),
    "pmv": Outcome("binary", prolonged_ventilation),
}
TASKS = {
    "mimic3": _STAYS | {"diag": Outcome("multilabel", diagnoses), "proc": Outcome("multilabel", procedures)},
    "mimic4": _STAYS
    | {
        "diag9": Outcome("multilabel", diagnoses),
        "diag10": Outcome("multilabel", partial(diagnoses, version="10")),
        "proc9": Outcome("multilabel", procedures),
        "proc10": Outcome("multilabel", partial(procedures, version="10")),
        "diag": Outcome("multilabel", partial(mapped, kind="diagnoses")),
        "proc": Outcome("multilabel", partial(mapped, kind="procedures")),
    },
}
