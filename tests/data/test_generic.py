"""Own tables become examples; what is wrong with them is told by file, column and row."""

import csv
import json

import pytest
from ml_collections import ConfigDict

from jaxlora.config import dataset, table
from jaxlora.data import generic
from jaxlora.data.examples import Task, split_of
from jaxlora.errors import UserError

KEY = bytes(32)
SHARES = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})
SECRET = "Sentinel9Q"
COLUMNS = ("id", "patient", "text", "label", "split")
GOOD = [
    (f"n{i}", f"p{i // 2}", f"{SECRET} {i}", "abc"[i % 3], ("train", "validation", "test")[i // 4]) for i in range(12)
]


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def read(kind, labels=(), **tables):
    task, examples = generic.read("mine", dataset(kind, labels, **tables), SHARES, KEY)
    return task, list(examples)


def notes(path, **fields):
    return table(
        path, **({"text": "text", "id": "id", "patient": "patient", "label": "label", "split": "split"} | fields)
    )


def test_multiclass_by_a_split_column(tmp_path):
    task, examples = read("multiclass", notes=notes(write(tmp_path / "t.csv", GOOD)))
    assert task == Task("mine", "multiclass", ("a", "b", "c"))
    assert [e.label for e in examples] == [0, 1, 2] * 4
    assert [e.split for e in examples] == ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    assert [e.text for e in examples] == [row[2] for row in GOOD]
    assert len({e.id for e in examples}) == 12 and len({e.patient for e in examples}) == 6
    assert not {e.id for e in examples} & {row[0] for row in GOOD}


def test_declared_labels_set_the_order(tmp_path):
    _, examples = read("multiclass", ("c", "b", "a"), notes=notes(write(tmp_path / "t.csv", GOOD)))
    assert [e.label for e in examples[:3]] == [2, 1, 0]


def test_by_patient_and_by_row(tmp_path):
    path = write(tmp_path / "t.csv", GOOD)
    _, by_patient = read("multiclass", ("a", "b", "c"), notes=notes(path, split=""))
    assert [e.split for e in by_patient] == [split_of(row[1], **SHARES) for row in GOOD]
    _, by_row = read("multiclass", ("a", "b", "c"), notes=notes(path, split="", patient=""))
    assert len({e.patient for e in by_row}) == 12


def test_a_fixed_split_for_each_file_and_ids_apart(tmp_path):
    one, two = (
        write(tmp_path / "a.csv", GOOD[:6]),
        write(tmp_path / "b.csv", [(f"n{i}", *GOOD[i + 6][1:]) for i in range(6)]),
    )
    _, examples = read("lm", a=notes(one, split="train"), b=notes(two, split="test"))
    assert [e.split for e in examples] == ["train"] * 6 + ["test"] * 6
    assert len({e.id for e in examples}) == 12 and {e.label for e in examples} == {None}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_multilabel_as_text_or_list(tmp_path, suffix):
    if suffix == ".csv":
        path = write(tmp_path / "t.csv", [("1", "p", "x", "b, a,", "train"), ("2", "q", "y", "", "test")])
    else:
        path = str(tmp_path / "t.jsonl")
        records = [("1", "p", "x", ["b", "a"], "train"), ("2", "q", "y", [], "test")]
        (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(dict(zip(COLUMNS, r, strict=True))) for r in records))
    task, examples = read("multilabel", notes=notes(path))
    assert task.labels == ("a", "b") and [e.label for e in examples] == [(0, 1), ()]


def replaced(row, column, value):
    rows = [list(r) for r in GOOD]
    rows[row - 1][COLUMNS.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (replaced(3, "text", "  "), (), "column 'text', row 3: no text"),
        (replaced(3, "id", ""), (), "column 'id', row 3: no id"),
        (replaced(3, "patient", ""), (), "column 'patient', row 3: no patient"),
        (replaced(3, "label", ""), (), "column 'label', row 3: no label"),
        (replaced(3, "label", SECRET), ("a", "b", "c"), "column 'label', row 3: a label outside the 3 declared labels"),
        (
            replaced(12, "label", SECRET),
            (),
            "column 'label', row 12: a label outside the 3 labels of the training split",
        ),
        (replaced(3, "split", SECRET), (), "column 'split', row 3: not a split; use one of train, validation, test"),
        (replaced(6, "id", "n0"), (), "column 'id', row 6: an earlier row has the same id"),
        (replaced(9, "patient", "p0"), (), "column 'patient', row 9: a patient of test is also in train"),
    ],
)
def test_cells_that_are_wrong(tmp_path, rows, labels, message):
    with pytest.raises(UserError) as caught:
        read("multiclass", labels, notes=notes(write(tmp_path / "t.csv", rows)))
    assert message in str(caught.value) and "t.csv" in str(caught.value)
    assert SECRET not in str(caught.value) and "p0" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "labels", "fields", "message"),
    [
        ("binry", (), {}, "datasets.mine.kind: 'binry' is not a kind; did you mean 'binary'"),
        ("binary", (), {"label": ""}, "datasets.mine.tables.notes.label: not set"),
        ("binary", (), {"text": ""}, "datasets.mine.tables.notes.text: not set"),
        ("binary", (), {}, "datasets.mine.labels: 3 labels; a binary dataset has 2"),
        ("multiclass", ("a",), {}, "datasets.mine.labels: 1 labels; a multiclass dataset needs more"),
        ("multiclass", ("a", "b", "a"), {}, "datasets.mine.labels: a label is declared twice"),
    ],
)
def test_parameters_that_are_wrong(tmp_path, kind, labels, fields, message):
    with pytest.raises(UserError, match=message):
        read(kind, labels, notes=notes(write(tmp_path / "t.csv", GOOD), **fields))


def test_a_dataset_needs_a_table():
    with pytest.raises(UserError, match="datasets.mine.tables: no table"):
        read("lm")


def test_a_list_where_text_is_needed(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "1", "text": [SECRET]}))
    with pytest.raises(UserError, match="column 'text', row 1: a list where one text is needed"):
        read("lm", notes=table(str(tmp_path / "t.jsonl"), "text", "id", split="train"))


def test_public_visit_notes(shared_data):
    folder = shared_data / "clinical-visit-note-corpus" / "mts-dialog"
    fields = {"text": "section_text", "id": "ID", "label": "section_header"}
    task, examples = read(
        "multiclass",
        train=table(str(folder / "MTS_Dataset_TrainingSet.csv"), **fields, split="train"),
        test=table(str(folder / "MTS_Dataset_ValidationSet.csv"), **fields, split="test"),
    )
    assert len(task.labels) == 20 and sum(e.split == "test" for e in examples) == 100


def test_groups_are_columns(tmp_path):
    rows = [(*row, ("F", " M ", "")[i % 3]) for i, row in enumerate(GOOD)]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "gender"))
    _, examples = read("multiclass", notes=notes(path, groups={"sex": "gender"}))
    assert [e.groups for e in examples] == [{"sex": "F"}, {"sex": "M"}, {}] * 4


def test_a_column_of_many_values_is_none_of_groups(tmp_path):
    rows = [(f"n{i}", f"p{i}", "x", "ab"[i % 2], "train", f"{SECRET}{i}") for i in range(30)]
    path = write(tmp_path / "t.csv", rows, (*COLUMNS, "who"))
    with pytest.raises(UserError, match="column 'who', row 21: more than 20 categories of 'sex'; give") as caught:
        read("binary", notes=notes(path, groups={"sex": "who"}))
    assert SECRET not in str(caught.value)
