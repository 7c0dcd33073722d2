"""The counted work, against the published table and against what XLA counts in a step."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.bases import build
from jaxlora.models.bert import BertConfig
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import MODULES, LoraSpec
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec
from jaxlora.models.remat import REMAT
from jaxlora.train.flops import costs, flops, pairs
from jaxlora.train.objective import Objective

LLAMA_8B = LlamaConfig(vocab=128256, embed=4096, mlp=14336, layers=32, heads=32, kv_heads=8, head_dim=128)
ALL = {name: LoraSpec(16, 32, targets=("all-linear",)) for name in ("clinical", "downstream")}
ALL |= {"ia3": Ia3Spec(), "adalora": AdaLoraSpec(16, 32, targets=("all-linear",))}
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
        *((remat, ("ia3", "adalora"), ("adapter/*",), 0) for remat in ("full", "save_qkv")),
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


@pytest.mark.parametrize("remat", ["none", "full", "save_qkv"])
@pytest.mark.parametrize(("active", "trainable"), [(("clinical",), ("clinical", "head")), ((), ("base", "head"))])
def test_the_hardware_does_what_was_counted_of_a_bert(remat, active, trainable):
    # Wider than SMALL, so that gelu and norms, which XLA counts too, are little.
    shape = BertConfig(64, 512, 1024, layers=2, heads=8, dropout=0, attention_dropout=0, remat=remat, unroll=True)
    deeper = dataclasses.replace(shape, layers=3)
    counted = [costs(s, ALL, active, trainable, 2, remat)[1] for s in (shape, deeper)]
    expected = [cost.of(ROWS * LENGTH, pairs(np.asarray([LENGTH] * ROWS)), ROWS) for cost in counted]
    found = [flops_of_step(s, active, trainable, 2) for s in (shape, deeper)]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.02)


def test_a_bert_costs_four_and_six_of_an_adapter_and_six_whole():
    shape = BertConfig(64, 256, 512, layers=2, heads=8)
    kernels = shape.layers * (4 * 256 * 256 + 2 * 256 * 512)
    adapter = shape.layers * 16 * (4 * 512 + 2 * 768)
    whole = costs(shape, ALL, (), ("base", "head"), 2, "none")[0].token
    assert (whole, costs(shape, ALL, ("clinical",), ("clinical",), 2, "none")[0].token) == (
        6 * kernels,
        4 * kernels + 6 * adapter,
    )


def flops_of_step(shape, active, trainable, labels, specs=ALL):
    """What XLA counts in the loss and its gradients, of a model that never exists."""
    model = nnx.eval_shape(lambda: build(shape, specs, labels, rngs=nnx.Rngs(0)))
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


COUNT = 6
PROMPTS = {"prefix": PrefixSpec(COUNT), "prompt": PromptSpec(COUNT), "beside": AdaptationPromptSpec(COUNT, 1)}
PROMPTS["downstream"] = LoraSpec(2, 4.0)


@pytest.mark.parametrize("name", ["prefix", "beside"])
@pytest.mark.parametrize(("remat", "trained"), [("none", True), ("full", False), ("save_qkv", True)])
def test_what_a_prompt_adds_to_a_layer_is_counted(name, remat, trained):
    shapes = [dataclasses.replace(SMALL, remat=remat, layers=layers) for layers in (2, 3)]
    trainable = (name, "downstream") if trained else ("downstream",)

    def added(of):
        """What a further layer costs with the prompt more than without."""
        two, three = (of(s, (name, "downstream"), trainable) - of(s, *[("downstream",)] * 2) for s in shapes)
        return three - two

    found = added(lambda shape, active, trainable: flops_of_step(shape, active, trainable, 0, PROMPTS))
    counted = added(
        lambda shape, active, trainable: costs(shape, PROMPTS, active, trainable, 0, remat)[1].of(
            ROWS * LENGTH, ROWS * LENGTH**2, ROWS
        )
    )
    # Done once an update: the frozen projections of an adaptation prompt, again, and their gradient.
    once = 2 * 2 * COUNT * SMALL.embed * SMALL.kv_heads * SMALL.head_dim
    counted += (name == "beside") * once * (1 + (remat != "none") + trained)
    assert found == pytest.approx(counted, rel=0.2)  # the softmax and the choosing of places are elementwise


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_a_virtual_token_costs_what_a_token_does(name):
    both, words = (name, "downstream"), ("downstream",)
    found = flops(SMALL, PROMPTS, both, words, LENGTH, 0, "none").model * LENGTH
    longer = flops(SMALL, PROMPTS, words, words, LENGTH + COUNT, 0, "none").model * (LENGTH + COUNT)
    assert found == pytest.approx(longer, rel=1e-12)


def test_an_adaptation_prompt_costs_in_its_own_layers_alone():
    def of_token(layers, trainable):
        specs = {**PROMPTS, "beside": AdaptationPromptSpec(COUNT, layers)}
        model, hardware = costs(SMALL, specs, ("beside", "downstream"), trainable, 0, "none")
        return np.asarray([model.token, hardware.token])

    size = 2 * COUNT * SMALL.heads * SMALL.head_dim
    for trainable, times in ((("downstream",), 4), (("adapter/*",), 6)):
        one, two = (of_token(layers, trainable) for layers in (1, 2))
        assert (two - one).tolist() == [times * size, 0]
        own = costs(SMALL, PROMPTS, ("downstream",), ("downstream",), 0, "none")[0].token
        assert (two - own).tolist() == [2 * times * size] * 2
