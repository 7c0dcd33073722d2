"""Patients in two splits, within a dataset and across datasets."""

import numpy as np

from jaxlora.audit.contents import Part, names, survey
from jaxlora.audit.patients import Shared, in_two_splits, repeated_ids
from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.examples import Example, Task


def part(dataset, split, patients, ids=None):
    of = np.asarray(patients, "S")
    return Part(dataset, split, of if ids is None else np.asarray(ids, "S"), of, None)


def test_shared_patients_are_counted_once_for_each_pair_of_splits():
    parts = [part("a", "train", ["p", "q", "q", "r"]), part("a", "test", ["s", "q"]), part("b", "train", ["s", "t"])]
    parts += [part("b", "validation", ["q", "p", "t"]), part("b", "test", ["z"])]
    assert in_two_splits(parts) == [
        Shared("a", "train", "a", "test", 1),
        Shared("a", "train", "b", "validation", 2),
        Shared("a", "test", "b", "train", 1),
        Shared("a", "test", "b", "validation", 1),
        Shared("b", "train", "b", "validation", 1),
    ]


def test_ids_are_repeated_within_a_dataset_only():
    parts = [part("a", "train", "pqr", ["1", "2", "2"]), part("a", "test", "s", ["1"]), part("b", "train", "p", ["1"])]
    assert repeated_ids(parts) == {"a": 2, "b": 0}


def test_survey_reads_every_kind(tmp_path):
    cases = {"lm": None, "binary": 1, "multiclass": 2, "multilabel": (0, 2)}
    for kind, label in cases.items():
        rows = [Example(f"{i:016x}", f"{i % 2:016x}", "x", label, ("train", "test")[i % 2]) for i in range(4)]
        builders.build(
            tmp_path, Work(Task(kind, kind, () if label is None else ("a", "b", "c")[: 2 + (kind != "binary")]), rows)
        )
    found = {(part.dataset, part.split): part for part in survey(tmp_path, "correct")}
    assert names(tmp_path, "correct") == sorted(cases) and len(found) == 8
    assert found["lm", "train"].labels is None and found["binary", "test"].labels.tolist() == [1, 1]
    assert [row.tolist() for row in found["multilabel", "train"].labels] == [[0, 2], [0, 2]]
    assert found["multiclass", "test"].ids.tolist() == [f"{1:016x}".encode(), f"{3:016x}".encode()]
    assert in_two_splits(list(found.values())) == [] and names(tmp_path / "none", "correct") == []
