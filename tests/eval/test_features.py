"""Kept features: the same batches, losses, checkpoints and metrics as the run that sees every token again."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora import partition, pipeline
from jaxlora.config import adapter, default
from jaxlora.data.loader import Batches
from jaxlora.eval.features import FeatureBatches, Features, can_keep
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train import loop
from jaxlora.train.mesh import make_mesh, put_batch
from jaxlora.train.objective import Objective

LENGTHS = [5, 16, 3, 9, 12, 7, 4]
LABELS = {
    "binary": np.asarray([0, 1, 1, 0, 1, 0, 0]),
    "multiclass": np.asarray([0, 2, 1, 0, 1, 2, 0]),
    "multilabel": [np.asarray(x, np.int64) for x in ([0], [1, 2], [], [0, 2], [1], [2], [])],
}


def head_only(**changes):
    config = default()
    config.adapters.clinical = adapter(4, 8, dropout=changes.pop("dropout", 0.0))
    config.update({"active": ("clinical",), "trainable": ("head",), "epochs": 3, **changes})
    return config


def test_features_are_kept_where_the_head_sees_the_same_in_every_epoch():
    assert can_keep(head_only(), "binary") and can_keep(head_only(dropout=0.1, active=()), "multilabel")
    for changes in ({"dropout": 0.1}, {"trainable": ("head", "clinical")}, {"trainable": ("base",)}, {"epochs": 1}):
        assert not can_keep(head_only(**changes), "binary")
    assert not can_keep(head_only(), "tokens") and not can_keep(head_only(), "lm")


@pytest.mark.parametrize("kind", LABELS)
def test_batches_and_losses_are_those_of_the_tokens(kind, random_llama, numbered_notes):
    model = random_llama({"clinical": LoraSpec(2, 4)}, 3, vocab=1000)
    weights = (0.5, 1.0, 2.0) if kind == "multiclass" else ()
    objective, mesh = Objective(kind, ("clinical",), weights), make_mesh(1, 1)
    definition, state = nnx.split(model)
    batches = Batches(numbered_notes(LENGTHS, LABELS[kind]), 32, 2, 3, epochs=2)
    kept = Features(definition, objective, mesh).of(batches, state)

    split, head, below = partition.split(model, ("head",))
    run = jax.jit(jax.value_and_grad(lambda head, batch: objective.loss(nnx.merge(split, head, below), batch)))
    assert len(kept) == len(batches) >= 2
    for batch, of_features in zip(batches, kept, strict=True):
        assert of_features.keys() == {"notes", "labels", "features"}
        assert (of_features["notes"] == batch["notes"]).all() and (of_features["labels"] == batch["labels"]).all()
        expected, found = (run(head, put_batch(mesh, b)) for b in (batch, of_features))
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_the_batches_go_on_from_a_state(numbered_notes):
    batches = Batches(numbered_notes(LENGTHS, LABELS["binary"]), 32, 2, 2, epochs=2)
    kept = FeatureBatches(batches, np.arange(1, len(LENGTHS) + 1, dtype=np.float32)[:, None])
    iterator, other = iter(kept), iter(kept)
    next(iterator)
    other.set_state(iterator.get_state())
    one, two = next(iterator), next(other)
    assert all((one[name] == two[name]).all() for name in one)
    there = one["notes"] > 0
    assert there.any() and (one["features"][there, 0] == one["notes"][there]).all()


@dataclasses.dataclass(frozen=True)
class Runs:
    """A short step 1, and a head on it, trained on `kept` features and in the `ordinary` way."""

    small: object
    folder: Path

    def train(self, name):
        step = "clinical" if name == "clinical" else "frozen"
        flags = [*self.small.flags(step), f"--config.clinical={self.folder / 'clinical'}"]
        return self.small.run("train", *flags, f"--workdir={self.folder / name}")


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    runs = Runs(small, tmp_path_factory.mktemp("features"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "can_keep", lambda *_: False)
        assert runs.train("clinical") == 0 and runs.train("ordinary") == 0
    assert runs.train("kept") == 0
    return runs


def lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_run_is_that_of_the_tokens(runs, stored):
    kept, ordinary = (lines(runs.folder / name) for name in ("kept", "ordinary"))
    assert "real_tokens_per_second" in ordinary[-1] and "real_tokens_per_second" not in kept[-1]
    for name in ("loss", "gradient_norm", "learning_rate", "validation/auroc", "validation/auprc"):
        one, two = ([(x["step"], x[name]) for x in log if name in x] for log in (kept, ordinary))
        assert one and np.asarray(one) == pytest.approx(np.asarray(two), rel=1e-5)
    one, two = (stored(runs.folder / name) for name in ("kept", "ordinary"))
    assert one["data"] == two["data"] and one["model"].keys() == two["model"].keys()
    for name, value in two["model"].items():
        np.testing.assert_allclose(one["model"][name], value, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_makes_the_features_of_the_restored_adapter(runs, stored):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_batch", stopping_after(7))
        assert runs.train("resumed") == 130
    assert 0 < max(int(path.name) for path in (runs.folder / "resumed/checkpoints").iterdir()) < 7
    assert runs.train("resumed") == 0
    one, two = (stored(runs.folder / name)["model"] for name in ("resumed", "kept"))
    assert [name for name in two if one[name].tobytes() != two[name].tobytes()] == []


def stopping_after(updates):
    """`put_batch` as by Ctrl-C after so many updates."""
    made = []

    def put(mesh, batch):
        if len(made) == updates:
            raise KeyboardInterrupt
        made.append(True)
        return put_batch(mesh, batch)

    return put
