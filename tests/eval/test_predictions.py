"""The file between a model and its evaluation."""

import dataclasses
import stat

import numpy as np
import pytest

from jaxlora.errors import UserError
from jaxlora.eval.predictions import Predictions, load


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    ids, patients = np.array(["a1", "b2", "c3"]), np.array(["p", "p", "q"])
    none = np.zeros(0, np.float32)
    logits = rng.normal(size=(3, 2)).astype(np.float32)
    p = Predictions("multilabel", ("é", "b,c"), ids, patients, np.eye(3, 2, dtype=np.uint8), logits, none, none, none)
    p.save(tmp_path / "p.npz")
    return p, tmp_path / "p.npz"


def test_round_trip(saved):
    before, path = saved
    after = load(path)
    assert (after.kind, after.names) == ("multilabel", ("é", "b,c"))
    for field in dataclasses.fields(before)[2:]:
        one, two = getattr(before, field.name), getattr(after, field.name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


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
