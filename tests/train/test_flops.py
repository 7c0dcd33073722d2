"""The counted work, against the published table and against what XLA counts in a step."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.models.llama import REMAT, Llama, LlamaConfig
from jaxlora.models.lora_spec import MODULES, LoraSpec
from jaxlora.train.flops import costs, flops, pairs
from jaxlora.train.objective import Objective

LLAMA_8B = LlamaConfig(vocab=128256, embed=4096, mlp=14336, layers=32, heads=32, kv_heads=8, head_dim=128)
ALL = {name: LoraSpec(16, 32, targets=("all-linear",)) for name in ("clinical", "downstream")}
SMALL = LlamaConfig(vocab=64, embed=256, mlp=512, layers=2, heads=8, kv_heads=4, head_dim=32, unroll=True)
ROWS, LENGTH = 1, 64  # one block of attention, for XLA counts a loop once


@pytest.mark.parametrize(("length", "lora", "whole"), [(2048, 31.9, 46.6), (4096, 33.5, 48.2), (8192, 36.7, 51.5)])
def test_llama_8b_costs_what_is_published(length, lora, whole):
    adapter = flops(LLAMA_8B, ALL, ("clinical",), ("clinical",), length, 0, "none").model
    full = flops(LLAMA_8B, ALL, (), ("base",), length, 0, "none").model
    assert (round(adapter / 1e9, 1), round(full / 1e9, 1)) == (lora, whole)


@pytest.mark.parametrize(
    ("remat", "active", "trainable", "labels"),
    [
        *((remat, ("clinical", "downstream"), ("adapter/*",), 0) for remat in sorted(REMAT)),
        ("full", ("clinical",), ("head",), 2),
        ("full", (), ("base",), 0),
    ],
)
def test_the_hardware_does_what_was_counted(remat, active, trainable, labels):
    shape = dataclasses.replace(SMALL, remat=remat)
    deeper = dataclasses.replace(shape, layers=3)
    counted = [costs(s, ALL, active, trainable, labels, remat)[1] for s in (shape, deeper)]
    # One block computes the whole square.
    expected = [cost.of(ROWS * LENGTH, ROWS * LENGTH**2, ROWS) for cost in counted]
    found = [flops_of_step(s, active, trainable, labels) for s in (shape, deeper)]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.015)


def flops_of_step(shape, active, trainable, labels):
    """What XLA counts in the loss and its gradients, of a model that never exists."""
    model = nnx.eval_shape(lambda: Llama(shape, ALL, labels, rngs=nnx.Rngs(0)))
    definition, params, frozen = partition.split(model, trainable)
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH), np.int32) for name in ("tokens", "segments", "positions")}
    batch |= {name: jax.ShapeDtypeStruct((ROWS, LENGTH // 16), np.int32) for name in ("notes", "labels")}
    objective = Objective("multiclass" if labels else "lm", active)

    def loss(params, frozen, batch):
        return objective.loss(nnx.merge(definition, params, frozen), batch)

    return jax.jit(jax.value_and_grad(loss)).lower(params, frozen, batch).cost_analysis()["flops"]


def test_an_adapter_costs_six_where_it_is_trained_four_where_it_is_active_and_nothing_else():
    size = 16 * sum(map(sum, map(SMALL.features, MODULES))) * SMALL.layers

    def of_token(active, trainable):
        return costs(SMALL, ALL, active, trainable, 0, "none")[0].token

    alone = of_token(("downstream",), ("downstream",))
    assert of_token(("clinical", "downstream"), ("downstream",)) - alone == 4 * size
    assert of_token(("clinical", "downstream"), ("adapter/*",)) - alone == 6 * size
    assert of_token(("clinical",), ("head",)) - of_token((), ("head",)) == 2 * size


def test_layers_of_unequal_rank_cost_what_they_need_and_run_as_wide_as_the_widest():
    some = {"clinical": LoraSpec(8, 16, targets=("q_proj",), layers=(1,))}
    none, one = (costs(SMALL, some, active, ("adapter/*",), 2, "none") for active in ((), ("clinical",)))
    size = 8 * sum(SMALL.features("q_proj"))
    assert one[0].token - none[0].token == 6 * size + 2 * kernels(SMALL)
    assert one[1].token - none[1].token == 6 * size * SMALL.layers + 2 * kernels(SMALL)


def kernels(shape):
    return shape.layers * sum(int(np.prod(shape.features(name))) for name in MODULES)


@pytest.mark.parametrize("window", [0, 3, 50])
def test_pairs_are_half_the_square_within_the_window(window):
    lengths = np.asarray([1, 20, 7])
    distances = [np.arange(n)[:, None] - np.arange(n) for n in lengths.tolist()]
    exact = sum(((d >= 0) & ((d < window) if window else True)).sum() for d in distances)
    # The diagonal counts half, on both its edges.
    halves = sum(n / 2 - (max(n - window, 0) / 2 if window else 0) for n in lengths.tolist())
    assert pairs(lengths, window) == exact - halves
