"""The arithmetic of memory."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jaxlora.config import adalora, adapter, default
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.remat import REMAT
from jaxlora.train.assemble import abstract, model_shape
from jaxlora.train.memory import activation_bytes, in_gib, state_bytes
from jaxlora.train.mesh import make_mesh

EIGHT = 8 * jax.devices()  # nothing is put on them


@pytest.fixture
def config(small_base):
    config = default()
    config.base = str(small_base)
    config.adapters.clinical = adapter(4, 8)
    config.active = config.trainable = ("clinical",)
    config.batch_size, config.data.length, config.loss_chunk = 8, 16, 1
    return config


def of_device(config, fsdp, tensor=1, trainable=("clinical", "head"), labels=3, members=1):
    mesh = make_mesh(fsdp, tensor, EIGHT)
    return state_bytes(config, model_shape(config), labels, mesh, trainable, members)


def test_bytes_of_one_device_are_those_of_the_arrays(random_llama, config):
    model = nnx.merge(*abstract(config, model_shape(config), 3, make_mesh(1, 1)))
    sizes = {path: np.prod(leaf.shape) * 4 for path, leaf in nnx.to_flat_state(nnx.state(model))}
    adapters = sum(size for path, size in sizes.items() if "adapters" in path)
    trained = adapters + sizes["head", "kernel"]
    assert of_device(config, 1) == {
        "base": sum(sizes.values()) - trained,
        "adapters": adapters,
        "head": sizes["head", "kernel"],
        "gradients": trained,
        "optimizer": 2 * trained,
    }
    assert of_device(config, 1, trainable=())["gradients"] == 0


def test_adalora_keeps_its_importance_beside_its_moments(config):
    config.adapters.clinical = adalora(4, 2, 8)
    config.active = config.trainable = ("clinical",)
    own = 4 * 2 * (4 * (32 + 32) + 4 + 4 * (32 + 16) + 4)  # P, e and Q of q and v in two layers
    kinds = of_device(config, 1, trainable=("clinical",))
    assert kinds["adapters"] == kinds["gradients"] == own and kinds["optimizer"] == 4 * own


def test_a_base_that_is_trained_is_kept_in_float32_whatever_it_is_computed_in(config):
    config.adapters, config.active, config.trainable = ConfigDict(), (), ("base", "head")
    whole = of_device(config, 1, trainable=config.trainable)
    config.dtype = "bfloat16"
    assert of_device(config, 1, trainable=config.trainable) == whole
    assert whole["gradients"] == whole["base"] + whole["head"] and whole["optimizer"] == 2 * whole["gradients"]
    config.trainable = ("head",)
    norms = 4 * (2 * 2 + 1) * 32
    assert of_device(config, 1, trainable=config.trainable)["base"] == (whole["base"] - norms) / 2 + norms


def test_what_is_cut_shrinks_and_what_is_whole_stays(config):
    whole, cut = of_device(config, 1), of_device(config, 8)
    norms = 4 * (2 * 2 + 1) * 32  # two in each of two layers and one at the end, of 32 features
    assert cut["base"] == (whole["base"] - norms) / 8 + norms
    assert cut["head"] == whole["head"]
    a, b = 4 * 2 * (32 + 32) * 4, 4 * 2 * 4 * (32 + 16)  # A is cut along its input; B's output lies over tensor
    assert (whole["adapters"], cut["adapters"]) == (a + b, a / 8 + b)
    assert cut["optimizer"] == 2 * cut["gradients"] == 2 * (cut["adapters"] + cut["head"])


def test_a_bert_and_its_adapters_are_counted(small_bert, config):
    config.base = str(small_bert)
    config.adapters.clinical = adapter(4, 8, targets=("query", "value"))
    assert of_device(config, 1)["gradients"] == of_device(config, 1)["adapters"] + of_device(config, 1)["head"] > 0
    config.trainable, config.active, config.adapters = ("base", "head"), (), {}
    whole = of_device(config, 1, trainable=("base", "head"))
    assert whole["optimizer"] == 2 * (whole["base"] + whole["head"])


def test_runs_over_one_base_need_room_for_each(config):
    one, four = of_device(config, 2), of_device(config, 2, members=4)
    assert four == {kind: size if kind == "base" else 4 * size for kind, size in one.items()}


def test_less_is_saved_at_every_step_down_the_ladder(config):
    shape = LlamaConfig(100, 64, 160, 2, 8, 2, 8)
    config.batch_size, config.data.length = 32, 32
    shapes = [dataclasses.replace(shape, remat=remat) for remat in REMAT if remat != "offload"]
    sizes = [activation_bytes(config, each, make_mesh(2, 1, EIGHT), 8) for each in shapes]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    assert sizes[0] == 4 * (32 * 2 * 64 * 4 + 2 * 8 * 100 * 4)  # rows of (layers' inputs and two chunks of logits)
    assert activation_bytes(config, shapes[0], make_mesh(2, 2, EIGHT), 8) == sizes[0]  # twice the rows, half of each
    config.accumulate = 4
    assert activation_bytes(config, shapes[0], make_mesh(2, 1, EIGHT), 8) == sizes[0] / 4


def test_a_sum_is_told_by_kind():
    assert in_gib({"base": 3 * 2**30, "head": 0, "adapters": 2**29}) == "base 3.00 + adapters 0.50 = 3.50 GiB"
