"""The file between a model and its evaluation."""

import dataclasses
import json
import stat

import numpy as np
import pytest

from jaxlora.data.loader import Batches
from jaxlora.errors import UserError
from jaxlora.eval.predict import predict
from jaxlora.eval.predictions import Predictions, load
from jaxlora.train.mesh import make_mesh


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    ids, patients = np.array(["a1", "b2", "c3"]), np.array(["p", "p", "q"])
    logits = rng.normal(size=(3, 2)).astype(np.float32)
    groups = {"sex": (("female", "male"), np.array([1, -1, 0], np.int16)), "age": ((), np.full(3, -1, np.int16))}
    labels = np.eye(3, 2, dtype=np.uint8)
    p = Predictions("multilabel", ("é", "b,c"), ids, patients, labels, logits, groups=groups)
    p.save(tmp_path / "p.npz")
    return p, tmp_path / "p.npz"


def test_round_trip(saved):
    before, path = saved
    after = load(path)
    assert (after.kind, after.names) == ("multilabel", ("é", "b,c"))
    assert list(after.groups) == ["sex", "age"]
    for attribute, (names, codes) in before.groups.items():
        assert after.groups[attribute][0] == names
        np.testing.assert_array_equal(after.groups[attribute][1], codes)
    for field in dataclasses.fields(before)[2:-1]:
        one, two = getattr(before, field.name), getattr(after, field.name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_a_file_from_before_there_were_groups(saved):
    before, path = saved
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "groups"}
    arrays["about"] = np.asarray(json.dumps(json.loads(str(arrays["about"]))[:2]))
    np.savez(path, **arrays)
    after = load(path)
    assert after.groups == {} and after.names == before.names
    np.testing.assert_array_equal(after.logits, before.logits)
    dataclasses.replace(before, groups={}).save(path)
    assert load(path).groups == {}


def test_predictions_have_the_groups_of_their_notes(numbered_notes):
    groups = {"sex": (("female", "male"), np.array([1, -1, 0], np.int16))}
    notes = dataclasses.replace(numbered_notes([4, 5, 6], np.array([0, 1, 0])), groups=groups)

    def step(_, batch):
        return {"logits": np.ones((*batch["notes"].shape, 2), np.float32)}

    p = predict(step, None, Batches(notes, 8, 2, 2, seed=None), "binary", ("no", "yes"), make_mesh(1, 1))
    assert p.groups == groups and p.logits.tolist() == [[1, 1]] * 3


def test_only_its_owner_reads_it(saved):
    assert stat.S_IMODE(saved[1].stat().st_mode) == 0o600


def test_nothing_else_is_left_in_the_folder(saved):
    assert [path.name for path in saved[1].parent.iterdir()] == ["p.npz"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b"x" * 100,
        lambda b: b[200:],
        lambda b: b.replace(b"about", b"abuot"),
    ],
)
def test_a_damaged_file(saved, damage):
    path = saved[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="p.npz is damaged; run `jaxlora evaluate` on that workdir again"):
        load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="p.npz does not exist; run `jaxlora evaluate`"):
        load(tmp_path / "p.npz")
