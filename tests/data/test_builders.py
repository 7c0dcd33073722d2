"""What is written is read back; a failing or damaged dataset is never half there."""

import dataclasses

import numpy as np
import pytest

from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.examples import SPLITS, Example, Task
from jaxlora.errors import UserError

SECRET = "Sentinel9Q"


def examples(label=lambda i: i % 2, text="é\n", count=30):
    return [Example(f"{i:016x}", f"{i // 2:016x}", f"{text}{i}", label(i), SPLITS[i % 3]) for i in range(count)]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("task", "label"),
    [
        (Task("a", "lm"), lambda i: None),
        (Task("b", "binary", ("no", "yes")), lambda i: i % 2),
        (Task("c", "multiclass", ("x", "y", "z, é")), lambda i: i % 3),
        (Task("d-1.x", "multilabel", ("x", "y")), lambda i: tuple(range(i % 3))),
    ],
)
def test_round_trip_in_order(tmp_path, task, label):
    made = examples(label)
    builders.build(tmp_path, Work(task, iter(made)))
    prepared = builders.load(tmp_path, task.name)
    assert prepared.task == task and prepared.splits == {"train": 10, "validation": 10, "test": 10}
    for name in SPLITS:
        split, expected = prepared.split(name), [e for e in made if e.split == name]
        assert len(split) == len(expected)
        for i, example in enumerate(expected):
            got = split[i]
            wanted = {k: v for k, v in dataclasses.asdict(example).items() if k not in ("split", "label")}
            assert {k: got[k] for k in wanted} == wanted and type(got["id"]) is str
            if task.kind == "multilabel":
                assert got["label"].dtype == np.int64 and tuple(got["label"]) == example.label
            else:
                assert got["label"] == example.label


def test_the_same_examples_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        builders.build(tmp_path / name, Work(Task("a", "binary", ("n", "y")), examples()))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_failing_build_leaves_the_previous_dataset(tmp_path, capfd):
    task = Task("a", "binary", ("n", "y"))
    builders.build(tmp_path, Work(task, examples()))
    before = contents(tmp_path)

    def failing():
        yield from examples(text=SECRET)
        raise UserError("row 31")

    with pytest.raises(UserError, match="^row 31$"):
        builders.build(tmp_path, Work(task, failing()))
    assert contents(tmp_path) == before and len(list(tmp_path.iterdir())) == 1
    assert SECRET not in "".join(capfd.readouterr())


def test_a_failing_swap_leaves_the_previous_dataset(tmp_path, monkeypatch):
    task = Task("a", "binary", ("n", "y"))
    builders.build(tmp_path, Work(task, examples()))
    before, rename = contents(tmp_path), type(tmp_path).rename

    def fail(source, target):
        if source.name == "a" and source.parents[1] != tmp_path:
            raise OSError("disk full")
        return rename(source, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(OSError):
        builders.build(tmp_path, Work(task, examples(count=60)))
    assert contents(tmp_path) == before


def test_a_new_build_replaces_the_previous_one(tmp_path):
    task = Task("a", "binary", ("n", "y"))
    for count in (30, 60):
        builders.build(tmp_path, Work(task, examples(count=count)))
    assert builders.load(tmp_path, "a").splits["train"] == 20
    assert [p.name for p in tmp_path.iterdir()] == ["clinical_notes"]


@pytest.mark.parametrize(("kind", "missing"), [("lm", "train"), ("binary", "train"), ("binary", "test")])
def test_a_split_without_rows_is_named(tmp_path, kind, missing):
    made = [e for e in examples() if e.split != missing]
    with pytest.raises(UserError, match=f"dataset a: the {missing} split has no rows"):
        builders.build(tmp_path, Work(Task("a", kind), made))


def test_a_corpus_needs_no_test_split(tmp_path):
    builders.build(tmp_path, Work(Task("a", "lm"), [e for e in examples(lambda i: None) if e.split == "train"]))
    assert builders.load(tmp_path, "a").splits == {"train": 10}


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b"])
def test_names_are_names_of_folders(tmp_path, name):
    with pytest.raises(UserError, match="in the name of a dataset"):
        builders.build(tmp_path, Work(Task(name, "lm"), examples()))


def test_absent_datasets_and_splits(tmp_path):
    with pytest.raises(UserError, match="dataset 'a' is not prepared; there are none; run `jaxlora prepare`"):
        builders.load(tmp_path, "a")
    builders.build(tmp_path, Work(Task("mortality", "lm"), examples()))
    with pytest.raises(UserError, match="'mortalty' is not prepared; did you mean 'mortality'"):
        builders.load(tmp_path, "mortalty")
    with pytest.raises(UserError, match="dataset mortality: no split 'tests'; did you mean 'test'"):
        builders.load(tmp_path, "mortality").split("tests")


@pytest.mark.parametrize("damage", ["cut", "empty", "absent", "info", "features"])
def test_damaged_files_are_told(tmp_path, damage):
    builders.build(tmp_path, Work(Task("a", "binary", ("n", "y")), examples(text=SECRET)))
    folder = tmp_path / "clinical_notes" / "a" / builders.VERSION
    shard = next(folder.glob("*train*"))
    match damage:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:65536])
        case "empty":
            shard.write_bytes(b"")
        case "absent":
            shard.unlink()
        case "info":
            (folder / "dataset_info.json").write_text("{")
        case "features":
            (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="^dataset a: its files are damaged or cut short; run `jaxlora prepare` again$"):
        builders.load(tmp_path, "a")


def test_damaged_bytes_inside_a_file_are_told(tmp_path):
    builders.build(tmp_path, Work(Task("a", "lm"), examples(text=SECRET * 9, count=3000)))
    shard = next((tmp_path / "clinical_notes" / "a" / builders.VERSION).glob("*train*"))
    split = builders.load(tmp_path, "a").split("train")
    content = bytearray(shard.read_bytes())
    content[200:2000] = bytes(1800)
    shard.write_bytes(content)
    with pytest.raises(UserError, match="dataset a: its files are damaged"):
        for i in range(len(split)):
            split[i]
