"""Datasets from your own tables: a column of text, and what to predict from it."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxlora.data import tables
from jaxlora.data.examples import KINDS, SPLITS, Example, Task, keyed, split_of
from jaxlora.errors import UserError, nearest

_MOST_CATEGORIES = 20  # their names are in reports: a column of names or numbers is none of groups


@dataclass(frozen=True)
class _Row:
    """One record of one table, its cells checked; `labels` are names, empty for "lm"; `groups` have what is filled."""

    table: str
    path: str
    number: int
    id: str
    patient: str
    split: str
    labels: tuple[str, ...]
    groups: dict[str, str]
    text: str


def read(name: str, dataset, split, key: bytes) -> tuple[Task, Iterator[Example]]:
    """Reads one dataset of `config.datasets`.

    The tables are read once without their text, to check ids, patients, splits and groups and to find the labels, and
    again while the examples are, which is when texts and labels are checked.

    Args:
      name: its name.
      dataset: its description, `config.dataset(...)`.
      split: the shares of the patients, for tables that do not say their split.
      key: of `load_key`.

    Raises:
      UserError: a parameter, a file or a cell is wrong; the message names it and never quotes it.
    """
    _check(name, dataset)
    declared = tuple(dataset.labels)
    found = _survey(dataset, split)
    if dataset.kind == "lm":
        labels = ()
    else:
        labels = declared or tuple(sorted(found))
        _check_labels(name, dataset.kind, labels)
    task = Task(name, dataset.kind, labels)
    return task, _examples(task, dataset, split, key, bool(declared))


def _check(name: str, dataset) -> None:
    if dataset.kind not in KINDS:
        raise UserError(f"datasets.{name}.kind: {dataset.kind!r} is not a kind{nearest(str(dataset.kind), KINDS)}")
    if not dataset.tables:
        raise UserError(f"datasets.{name}.tables: no table; add one with table(path, text, id)")
    for table_name, table in dataset.tables.items():
        for field in ("path", "text", "id") if dataset.kind == "lm" else ("path", "text", "id", "label"):
            if not table[field]:
                raise UserError(
                    f"datasets.{name}.tables.{table_name}.{field}: not set; a {dataset.kind} table needs it"
                )


def _check_labels(name: str, kind: str, labels: tuple[str, ...]) -> None:
    if len(set(labels)) != len(labels):
        raise UserError(f"datasets.{name}.labels: a label is declared twice; declare each once")
    if kind == "binary" and len(labels) != 2:
        raise UserError(f"datasets.{name}.labels: {len(labels)} labels; a binary dataset has 2, negative one first")
    if len(labels) < (2 if kind == "multiclass" else 1):
        raise UserError(f"datasets.{name}.labels: {len(labels)} labels; a {kind} dataset needs more")


def _survey(dataset, split) -> set[str]:
    """Returns the label names of the training split; raises for duplicate ids and patients in two splits."""
    ids: set[tuple[str, str]] = set()
    categories: dict[str, set[str]] = {}
    split_of_patient: dict[str, str] = {}
    labels: set[str] = set()
    for row in _rows(dataset, split, with_text=False):
        table = dataset.tables[row.table]
        if (row.table, row.id) in ids:
            raise UserError(
                f"{tables.where(row.path, table.id, row.number)}: an earlier row has the same id; make ids unique"
            )
        ids.add((row.table, row.id))
        first = split_of_patient.setdefault(row.patient, row.split)
        if first != row.split:
            raise UserError(
                f"{tables.where(row.path, table.patient or table.id, row.number)}: a patient of {row.split} is also "
                f"in {first}; keep every patient in one split"
            )
        for attribute, category in row.groups.items():
            if len(categories.setdefault(attribute, set()) | {category}) > _MOST_CATEGORIES:
                column = table.groups[attribute]
                raise UserError(
                    f"{tables.where(row.path, column, row.number)}: more than {_MOST_CATEGORIES} categories of "
                    f"{attribute!r}; give a column of few groups"
                )
            categories[attribute].add(category)
        if row.split == "train":
            labels.update(row.labels)
    return labels


def _examples(task: Task, dataset, split, key: bytes, declared: bool) -> Iterator[Example]:
    index = {label: i for i, label in enumerate(task.labels)}
    origin = f"{len(index)} declared labels" if declared else f"{len(index)} labels of the training split"
    for row in _rows(dataset, split, with_text=True):
        if any(label not in index for label in row.labels):
            at = tables.where(row.path, dataset.tables[row.table].label, row.number)
            raise UserError(f"{at}: a label outside the {origin}; correct the row, or declare it in labels")
        indices = tuple(sorted({index[label] for label in row.labels}))
        label = {"lm": None, "multilabel": indices}.get(task.kind, indices[0] if indices else None)
        id = keyed(key, f"{row.table}:{row.id}")
        yield Example(id, keyed(key, f"patient:{row.patient}"), row.text, label, row.split, row.groups)


def _rows(dataset, split, with_text: bool) -> Iterator[_Row]:
    for name, table in dataset.tables.items():
        columns = [table.id]
        columns += [table.text] if with_text else []
        columns += [table.patient] if table.patient else []
        columns += [table.label] if dataset.kind != "lm" else []
        columns += [table.split] if table.split not in ("", *SPLITS) else []
        columns += table.groups.values()
        for number, cells in tables.rows(table.path, columns):
            id = _required(cells, table, table.id, number, "id")
            # A row without a patient column is its own patient, apart from rows of other tables with the same id.
            patient = _required(cells, table, table.patient, number, "patient") if table.patient else f"{name}:{id}"
            yield _Row(
                name,
                table.path,
                number,
                id,
                patient,
                _split(cells, table, number, patient, split),
                () if dataset.kind == "lm" else _label_names(cells, table, number, dataset.kind),
                _groups(cells, table, number),
                _required(cells, table, table.text, number, "text") if with_text else "",
            )


def _required(cells: tables.Row, table, column: str, number: int, what: str) -> str:
    cell = cells[column]
    if isinstance(cell, list):
        raise UserError(f"{tables.where(table.path, column, number)}: a list where one {what} is needed; store text")
    if cell is None or not cell.strip():
        raise UserError(f"{tables.where(table.path, column, number)}: no {what}; fill the cell or remove the row")
    return cell


def _split(cells: tables.Row, table, number: int, patient: str, shares) -> str:
    if table.split in SPLITS:
        return table.split
    if not table.split:
        return split_of(patient, **shares)
    cell = cells[table.split]
    if cell not in SPLITS:
        raise UserError(f"{tables.where(table.path, table.split, number)}: not a split; use one of {', '.join(SPLITS)}")
    return cell


def _groups(cells: tables.Row, table, number: int) -> dict[str, str]:
    """Returns the category of each attribute; an empty or blank cell is a patient of whom it is not known."""
    filled = {
        attribute: column
        for attribute, column in table.groups.items()
        if isinstance(cells[column], list) or (cells[column] or "").strip()
    }
    return {name: _required(cells, table, column, number, "category").strip() for name, column in filled.items()}


def _label_names(cells: tables.Row, table, number: int, kind: str) -> tuple[str, ...]:
    if kind != "multilabel":
        return (_required(cells, table, table.label, number, "label").strip(),)
    cell = cells[table.label]
    # A note may well have none of the labels, so an empty cell is the empty set.
    names = cell if isinstance(cell, list) else (cell or "").split(",")
    return tuple(name.strip() for name in names if name.strip())
