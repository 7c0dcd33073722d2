"""The published lists of patients, and shares where there are none."""

import pytest
from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.data import splits
from jaxlora.data.examples import split_of
from jaxlora.errors import UserError

SHARES = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})


def lists(folder, train=(), val=(), test=()):
    for name, patients in (("train", train), ("val", val), ("test", test)):
        (folder / f"mimic_{name}.csv").write_text("\n".join(["SUBJECT_ID", *patients]) + "\n")
    return folder


def test_lists_name_a_patient_once_for_every_note(tmp_path):
    config = default()
    config.core_splits = str(lists(tmp_path, train=("1", "2", "1"), val=("3",), test=("4.0",)))
    place = splits.splitter("mimic3", config)
    assert [place(patient) for patient in "12345"] == ["train", "train", "validation", "test", None]


def test_shares_without_lists():
    config = default()
    config.split = SHARES
    for release, config.core_splits in (("mimic3", ""), ("mimic4", "of MIMIC-III")):
        place = splits.splitter(release, config)
        assert all(place(str(i)) == split_of(str(i), **SHARES) for i in range(99))


def test_a_patient_in_two_lists(tmp_path):
    with pytest.raises(UserError, match="mimic_test.csv, row 2: mimic_train.csv has this patient too") as caught:
        splits.core_lists(lists(tmp_path, train=("77", "78"), val=("5",), test=("6", "78")))
    assert "78" not in str(caught.value).replace(str(tmp_path), "")


def test_a_missing_list(tmp_path):
    lists(tmp_path, ("1",), ("2",), ("3",))
    (tmp_path / "mimic_val.csv").unlink()
    with pytest.raises(UserError, match="mimic_val.csv: no such file; set core_splits to the folder of mimic_train"):
        splits.core_lists(tmp_path)


def test_the_published_lists(shared_data):
    places = list(splits.core_lists(shared_data / "core-splits").values())
    assert [places.count(split) for split in ("train", "validation", "test")] == [26124, 3732, 7465]
