"""Annotated datasets in the formats they are given out in, to examples: one folder or file a split."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlora.data import annotated, questions
from jaxlora.data.annotated import Record
from jaxlora.data.examples import SPLITS, Example, Task, keyed, split_of
from jaxlora.errors import UserError, one_of


class Format(NamedTuple):
    """The kind of task that a format is, its reader, and whether that reads a folder or a file."""

    kind: str
    read: Callable[[Path], Iterator[Record]]
    folder: bool


FORMATS = {
    "n2c2": Format("tokens", annotated.n2c2, True),
    "i2b2": Format("tokens", annotated.i2b2, True),
    "radqa": Format("span", questions.radqa, False),
    "mednli": Format("multiclass", questions.mednli, False),
}


def read(name: str, dataset, split, key: bytes) -> tuple[Task, Iterator[Example]]:
    """Reads one dataset of `config.datasets` that says its `format`.

    Everything is read and checked once here, and again while the examples are.

    Args:
      name: its name.
      dataset: its description, `config.native(...)`.
      split: its `validation` is the share of the training patients that are set apart where there is no validation
        part; a note without a patient known to the format is a patient of its own.
      key: of `load_key`.

    Raises:
      UserError: a field, a file or an annotation is wrong; the message names it and never quotes it.
    """
    form = FORMATS[one_of(f"datasets.{name}.format", dataset.format, FORMATS)]
    for part in SPLITS:
        path = dataset[part]
        if not path and part != "validation":
            raise UserError(f"datasets.{name}.{part}: not set; a {dataset.format} dataset needs it")
        if path and not (Path(path).is_dir() if form.folder else Path(path).is_file()):
            raise UserError(f"datasets.{name}.{part}: {path} is not a {'folder' if form.folder else 'file'}")
    declared = tuple(dataset.labels)
    if len(set(declared)) != len(declared):
        raise UserError(f"datasets.{name}.labels: a label is declared twice; declare each once")
    found, places = _survey(form, dataset)
    labels = declared or tuple(sorted(found))
    if form.kind != "span" and len(labels) < (2 if form.kind == "multiclass" else 1):
        raise UserError(f"datasets.{name}: {len(labels)} labels; a {dataset.format} dataset needs more")
    for label, where in places.items():
        if label not in labels:
            raise UserError(
                f"{where}: a label outside the {len(labels)} known ones; correct it, or declare it in labels"
            )
    task = Task(name, form.kind, labels)
    return task, _examples(task, form, dataset, split, key)


def _survey(form: Format, dataset) -> tuple[set[str], dict[str, str]]:
    """Returns the label names of the training part, and of all labels where each is found first.

    Raises:
      UserError: two records of one part have the same id.
    """
    ids: set[tuple[str, str]] = set()
    trained: set[str] = set()
    places: dict[str, str] = {}
    for part, record in _records(form, dataset):
        if (part, record.id) in ids:
            raise UserError(f"{record.where}: an earlier one has the same id; make ids unique")
        ids.add((part, record.id))
        for label in _names(record):
            places.setdefault(label, record.where)
        if part == "train":
            trained.update(_names(record))
    return trained, places


def _examples(task: Task, form: Format, dataset, split, key: bytes) -> Iterator[Example]:
    index = {label: number for number, label in enumerate(task.labels)}
    for part, record in _records(form, dataset):
        patient = f"{part}:{record.patient}"
        # Those whom the shares would give to the test stay in training: the test part is the dataset's own.
        apart = part == "train" and not dataset.validation and split_of(patient, **split) == "validation"
        id, who = keyed(key, f"{part}:{record.id}"), keyed(key, f"patient:{patient}")
        yield Example(id, who, record.text, _label(record, index), "validation" if apart else part)


def _records(form: Format, dataset) -> Iterator[tuple[str, Record]]:
    for part in SPLITS:
        if dataset[part]:
            for record in form.read(Path(dataset[part])):
                yield part, record


def _names(record: Record) -> list[str]:
    if isinstance(record.label, str):
        return [record.label]
    return [entity[2] for entity in record.label] if isinstance(record.label, list) else []


def _label(record: Record, index: dict[str, int]) -> int | np.ndarray:
    """Returns the label as examples have it: an index, or int64 rows (start, end, index) or (start, end)."""
    if isinstance(record.label, str):
        return index[record.label]
    if isinstance(record.label, np.ndarray):
        return record.label
    rows = [(start, end, index[label]) for start, end, label in record.label]
    return np.asarray(rows, np.int64).reshape(-1, 3)
