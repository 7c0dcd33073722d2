"""The answer key of generated tables: what their generator knows about them, as expected counts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlora import files
from jaxlora.data.examples import MODES
from jaxlora.errors import UserError

_REMEDY = "run `jaxlora synthesize` again"


@dataclass(frozen=True)
class Answers:
    """The answer key of one release.

    Attributes:
      release: "mimic3" or "mimic4". tables: rows by name of the table.
      notes: for each mode, what `prepare` counts of the summaries. corpus: what it counts of all notes.
      labels: of `diag_paper` and `proc_paper`, in order.
      admissions: for each mode and admission, the patient and the answers by name of the dataset.
    """

    release: str
    tables: dict[str, int]
    notes: dict[str, dict[str, int]]
    corpus: dict[str, int]
    labels: dict[str, list[str]]
    admissions: dict[str, list[tuple[str, dict[str, Any]]]]

    def tells(self, dataset: str) -> bool:
        """Returns whether a dataset, by its name without its mode, is in the key."""
        return any(dataset in answer for _, answer in self.admissions["correct"])

    def expected(self, mode: str, dataset: str, split_of: Callable[[str], str | None]) -> list[tuple[str, Any]]:
        """Returns (split, label) of every row that a dataset must have; a label is an index, or a list of names."""
        rows = []
        for patient, answer in self.admissions[mode]:
            label, split = answer.get(dataset), split_of(patient)
            if label is not None and label != [] and split is not None:
                rows.append((split, label))
        return rows


def read(folder: str | Path, release: str) -> Answers | None:
    """Reads `answers.json` and `answers.jsonl` of a folder of generated tables; None where there is no answers.json.

    Raises:
      UserError: a file is malformed, or the two disagree; the message names the file, and the line of answers.jsonl.
    """
    path = Path(folder) / "answers.json"
    if not path.is_file():
        return None
    whole = files.read_json_object(path, _REMEDY)
    for name in ("tables", "notes", "notes_paper", "corpus", "labels", "counts"):
        if not isinstance(whole.get(name), dict):
            raise UserError(f"{path}: {name} is not there, or not an object; {_REMEDY}")
    for name, order in whole["labels"].items():
        if not _texts(order):
            raise UserError(f"{path}: labels.{name} is not a list of texts; {_REMEDY}")
    if whole.get("release") != release:
        raise UserError(f"{path}: release is not {release}; set the folders of the two releases apart")
    admissions = {mode: [] for mode in MODES}
    lines = path.with_suffix(".jsonl")
    for patient, answer in _lines(lines):
        for mode in MODES:
            admissions[mode].append((patient, answer[mode]))
    _agree(path, lines, whole["counts"], admissions)
    notes = {"correct": whole["notes"], "paper": whole["notes_paper"]}
    return Answers(release, whole["tables"], notes, whole["corpus"], whole["labels"], admissions)


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file beside answers.json; {_REMEDY}")
    seen = set()
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                answer = None
            if not _well_formed(answer):
                raise UserError(f"{path}, line {number}: not an answer; {_REMEDY}")
            if answer["admission"] in seen:
                raise UserError(f"{path}, line {number}: an admission that an earlier line has; {_REMEDY}")
            seen.add(answer["admission"])
            yield answer["patient"], answer


def _well_formed(answer: Any) -> bool:
    if not isinstance(answer, dict) or not all(isinstance(answer.get(name), str) for name in ("admission", "patient")):
        return False
    for mode in MODES:
        if not isinstance(answer.get(mode), dict) or not isinstance(answer[mode].get("fate"), str):
            return False
        for name, label in answer[mode].items():
            coded = name.startswith(("diag", "proc"))
            if name != "fate" and not (_texts(label) if coded else label is None or type(label) is int):
                return False
    return True


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _agree(path: Path, lines: Path, counts: dict, admissions: dict[str, list[tuple[str, dict]]]) -> None:
    """Raises UserError where a count of answers.json is not the one of the lines."""
    for mode in MODES:
        if not isinstance(counts.get(mode), dict):
            raise UserError(f"{path}: counts.{mode} is not there, or not an object; {_REMEDY}")
        for name, told in counts[mode].items():
            labels = [answer.get(name) for _, answer in admissions[mode]]
            if name == "kept":
                found = sum(answer["fate"] == "kept" for _, answer in admissions[mode])
            elif isinstance(told, dict):
                found = Counter(str(label) for label in labels if label is not None)
                told = {label: count for label, count in told.items() if count}
            else:
                found = sum(label not in (None, []) for label in labels)
            if told != found:
                raise UserError(f"{path}: counts.{mode}.{name} disagrees with {lines.name}; {_REMEDY}")
