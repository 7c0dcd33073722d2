"""The arithmetic of memory, and the choice that rests on it."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.models.llama import REMAT, LlamaConfig
from jaxlora.train.assemble import abstract, model_shape
from jaxlora.train.memory import activation_bytes, lay_out, state_bytes
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


def of_device(config, fsdp, tensor=1, trainable=("clinical", "head"), labels=3):
    shape, mesh = model_shape(config), make_mesh(fsdp, tensor, EIGHT)
    return state_bytes(nnx.merge(*abstract(config, shape, labels, mesh)), trainable)


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


def test_what_is_cut_shrinks_and_what_is_whole_stays(config):
    whole, cut = of_device(config, 1), of_device(config, 8)
    norms = 4 * (2 * 2 + 1) * 32  # two in each of two layers and one at the end, of 32 features
    assert cut["base"] == (whole["base"] - norms) / 8 + norms
    assert cut["head"] == whole["head"]
    a, b = 4 * 2 * (32 + 32) * 4, 4 * 2 * 4 * (32 + 16)  # A is cut along its input; B's output lies over tensor
    assert (whole["adapters"], cut["adapters"]) == (a + b, a / 8 + b)
    assert cut["optimizer"] == 2 * cut["gradients"] == 2 * (cut["adapters"] + cut["head"])


def test_less_is_saved_at_every_step_down_the_ladder():
    shapes = [LlamaConfig(100, 64, 160, 2, 8, 2, 8, remat=remat) for remat in REMAT if remat != "offload"]
    sizes = [activation_bytes(shape, 4, 32, 8) for shape in shapes]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    assert sizes[0] == 4 * (32 * 2 * 64 * 4 + 2 * 8 * 100 * 4)  # rows of (layers' inputs and two chunks of logits)


@pytest.mark.parametrize("wanted", [1, 2, 4, 8])
def test_fsdp_is_the_least_that_fits(config, capsys, wanted):
    reserve = activation_bytes(model_shape(config), 1, 16, 1)
    limit = int((sum(of_device(config, wanted, trainable=("clinical",), labels=0).values()) + reserve) / 0.9) + 8
    mesh = lay_out(config, 0, ("clinical",), EIGHT, limit)
    assert dict(mesh.shape) == {"data": 8 // wanted, "fsdp": wanted, "tensor": 1}
    (line,) = capsys.readouterr().out.splitlines()
    figures = [float(figure) for figure in re.findall(r"\d+\.\d+", line)]
    assert line.startswith(f"mesh: data {8 // wanted} x fsdp {wanted} x tensor 1; a device needs base ")
    assert len(figures) == 7 and "reserve" in line and figures[-2] <= figures[-1]


def test_runs_over_one_base_need_room_for_each(config, capsys):
    kinds = of_device(config, 1, trainable=("clinical",), labels=0)
    reserve = activation_bytes(model_shape(config), 1, 16, 1)
    limit = int((sum(kinds.values()) + reserve) / 0.9) + 8
    assert lay_out(config, 0, ("clinical",), EIGHT, limit).shape["fsdp"] == 1
    assert lay_out(config, 0, ("clinical",), EIGHT, limit, members=4).shape["fsdp"] > 1


CORES = """
import os, sys
from jaxlora import workers
from jaxlora.config import default
from jaxlora.train import memory
memory.cores = lambda: 4
memory.share_cores(sys.argv[1])
import jax
config = default()
found = [jax.device_count()]
for rows, parts in ((8, 1), (6, 1), (5, 1), (8, 4)):
    config.batch_size, config.accumulate = rows, parts
    found.append(memory.lay_out(config, 0).shape["data"])
print(found)
"""


@pytest.mark.parametrize(
    ("told", "found"), [({}, "[4, 4, 3, 1, 2]"), ({"JAX_NUM_CPU_DEVICES": "2"}, "[2, 2, 2, 2, 2]")]
)
def test_cores_share_the_rows_of_a_small_base(small_base, told, found):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", CORES, str(small_base)],
        env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)} | told,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == found


def test_base_that_fits_nowhere_is_cut_as_far_as_can_be(config, capsys):
    assert lay_out(config, 0, ("clinical",), EIGHT, 1000).shape["fsdp"] == 8
    assert "GiB, more than the 0.00 GiB it has" in capsys.readouterr().out


def test_where_memory_is_unknown_the_base_is_whole(config, capsys):
    assert lay_out(config, 0, ("clinical",), EIGHT).shape["fsdp"] == 1
    config.mesh.fsdp = 4
    assert lay_out(config, 0, ("clinical",), EIGHT, 1000).shape["fsdp"] == 4
    assert not capsys.readouterr().out


def test_tensor_that_does_not_divide_the_devices_is_an_error(config):
    config.mesh.tensor = 3
    with pytest.raises(
        UserError, match="^config.mesh: 8 devices cannot be laid out as fsdp 1 by tensor 3; give tensor 2"
    ):
        lay_out(config, 0, (), EIGHT, 1000)
