"""An update in parts is the update of the whole batch, and no update does more than it must."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.models.llama import Llama
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train.mesh import make_mesh, replicated
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import TrainState, abstract_optimizer, init_state, make_train_step

RNG = np.random.default_rng(0)
# Rows of two notes, of one, and of none, so that parts of a batch differ in what they weigh.
SEGMENTS = np.repeat([[1, 2], [1, 0], [0, 0], [1, 2]], 8, axis=1)
ROWS = {
    "tokens": RNG.integers(1, 32, (4, 16)),
    "segments": SEGMENTS,
    "positions": np.tile(np.arange(8), (4, 2)),
    "notes": np.asarray([[1, 2], [3, 0], [0, 0], [4, 5]]),
}
PRESENT = ROWS["notes"] > 0
ENDS = np.where(PRESENT[..., None], np.asarray([[[1, 4], [9, 12]]]), -1)
LABELS = {
    "lm": {},
    "binary": {"labels": PRESENT * RNG.integers(0, 2, (4, 2))},
    "multilabel": {"labels": (PRESENT[..., None] * RNG.integers(0, 2, (4, 2, 2))).astype(np.float32)},
    "tokens": {"labels": np.where(SEGMENTS > 0, RNG.integers(-1, 2, (4, 16)), -1)},
    "span": {"labels": ENDS},
}


def update(model, kind, accumulate, batch, dropout=False):
    """The metrics of an update by plain gradient descent, and by path how far it moved what it trains."""
    trained = ["clinical"] if kind == "lm" else ["clinical", "head"]
    definition, params, frozen = partition.split(model, trained)
    mesh, before = make_mesh(1, 1), {p: np.asarray(leaf[...]) for p, leaf in nnx.to_flat_state(params)}
    optimizer, weights = optax.sgd(1.0), (0.5, 3.0) if kind == "binary" else ()
    state = init_state(params, optimizer, mesh)
    objective = Objective(kind, ("clinical",), weights)
    step = make_train_step(definition, optimizer, objective, dropout, state, mesh, accumulate)
    batch = {name: rows if rows.dtype == np.float32 else rows.astype(np.int32) for name, rows in batch.items()}
    state, metrics = step(jax.tree.map(lambda x: x.copy(), state), frozen, batch, jax.random.key(7))
    moved = {path: before[path] - np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state.params)}
    return {name: float(value) for name, value in metrics.items()}, moved


@pytest.mark.parametrize("kind", LABELS)
def test_parts_of_unequal_weight_make_the_update_of_the_whole(random_llama, kind):
    model = random_llama({"clinical": LoraSpec(3, 6.0)}, 0 if kind == "lm" else 2)
    batch = ROWS | LABELS[kind]
    wanted, wanted_moves = update(model, kind, 1, batch)
    metrics, moves = update(model, kind, 4, batch)
    assert wanted["loss"] > 0 and metrics == pytest.approx(wanted, rel=1e-6)
    for path, moved in moves.items():
        assert np.any(moved)
        np.testing.assert_allclose(moved, wanted_moves[path], rtol=1e-5, atol=1e-6, err_msg=str(path))


def test_every_part_has_dropout_of_its_own(random_llama):
    model = random_llama({"clinical": LoraSpec(3, 6.0, dropout=0.5)})
    alike = {name: rows[:1].repeat(2, axis=0) for name, rows in ROWS.items()}
    objective, key = Objective("lm", ("clinical",)), jax.random.key(7)
    run = jax.jit(lambda key: objective.loss(model, {name: rows[:1] for name, rows in alike.items()}, key))
    first, second = (float(run(jax.random.fold_in(key, part))) for part in (0, 1))
    assert abs(first - second) > 1e-3
    metrics, _ = update(model, "lm", 2, alike, dropout=True)
    assert metrics["loss"] == pytest.approx((first + second) / 2, rel=1e-6)


def compiled_flops(shape, rows, length):
    """What XLA counts in the compiled update of two adapters, one frozen, of a classifier that never exists."""
    model, mesh = nnx.eval_shape(lambda: Llama(shape, ADAPTERS, 2, rngs=nnx.Rngs(0))), make_mesh(1, 1)
    definition, params, frozen = partition.split(model, ["downstream", "head"])
    whole = replicated(mesh)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), params)
    optimizer = make_optimizer(optax.constant_schedule(1e-3), weight_decay=0.01, clip=1.0)
    state = TrainState(params, abstract_optimizer(params, optimizer, mesh))
    step = make_train_step(definition, optimizer, Objective("binary", tuple(ADAPTERS)), False, state, mesh)
    batch = {name: jax.ShapeDtypeStruct((rows, length), np.int32) for name in ("tokens", "segments", "positions")}
    batch |= {name: jax.ShapeDtypeStruct((rows, length // 16), np.int32) for name in ("notes", "labels")}
    return step.lower(state, frozen, batch, jax.random.key(0)).compile().cost_analysis()["flops"]


ADAPTERS = {name: LoraSpec(16, 32.0, targets=("all-linear",)) for name in ("clinical", "downstream")}


def test_a_layer_costs_no_more_than_the_method_needs():
    """Two and three layers, differenced: no gradient goes to what is frozen, and none is computed twice."""
    shape = LlamaConfig(64, 2048, 5632, 2, 32, 4, 64, unroll=True)
    two, three = (compiled_flops(dataclasses.replace(shape, layers=layers), 8, 64) for layers in (2, 3))
    kernels = 2048 * (2 * 2048 + 2 * 256) + 3 * 2048 * 5632
    adapter = 16 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 5632))
    of_token = 4 * kernels + (4 + 6) * adapter + 3 * 2 * 64 * 2048
    assert of_token < (three - two) / (8 * 64) < 1.03 * of_token
