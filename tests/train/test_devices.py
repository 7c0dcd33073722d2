"""Which devices a run takes, and over how many of them its base is cut."""

import os
import re
import subprocess
import sys

import jax
import pytest

from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.train.assemble import model_shape
from jaxlora.train.devices import lay_out
from jaxlora.train.memory import activation_bytes, state_bytes
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


def limit_of(config, fsdp):
    """The least memory of a device in which a base cut over `fsdp` devices fits."""
    shape, mesh = model_shape(config), make_mesh(fsdp, 1, EIGHT)
    needed = sum(state_bytes(config, shape, 0, mesh, ("clinical",)).values())
    return int((needed + activation_bytes(config, shape, mesh, 1)) / 0.9) + 8


@pytest.mark.parametrize("wanted", [1, 2, 4, 8])
def test_fsdp_is_the_least_that_fits(config, wanted):
    lines = []
    mesh = lay_out(config, 0, ("clinical",), EIGHT, limit_of(config, wanted), report=lines.append)
    assert dict(mesh.shape) == {"data": 8 // wanted, "fsdp": wanted, "tensor": 1}
    (line,) = lines
    figures = [float(figure) for figure in re.findall(r"\d+\.\d+", line)]
    assert line.startswith(f"mesh: data {8 // wanted} x fsdp {wanted} x tensor 1; a device needs base ")
    assert len(figures) == 7 and "reserve" in line and figures[-2] <= figures[-1]


def test_runs_over_one_base_need_room_for_each(config):
    limit = limit_of(config, 1)
    assert lay_out(config, 0, ("clinical",), EIGHT, limit).shape["fsdp"] == 1
    assert lay_out(config, 0, ("clinical",), EIGHT, limit, members=4).shape["fsdp"] > 1


CORES = """
import os, sys
from jaxlora import workers
from jaxlora.config import default
from jaxlora.train import devices
devices.cores = lambda: 4
devices.share_cores(sys.argv[1])
import jax
config = default()
found = [jax.device_count()]
for rows, parts in ((8, 1), (6, 1), (5, 1), (8, 4)):
    config.batch_size, config.accumulate = rows, parts
    found.append(devices.lay_out(config, 0).shape["data"])
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


def test_base_that_fits_nowhere_is_cut_as_far_as_can_be(config):
    lines = []
    assert lay_out(config, 0, ("clinical",), EIGHT, 1000, report=lines.append).shape["fsdp"] == 8
    assert "GiB, more than the 0.00 GiB it has" in lines[0]


def test_where_memory_is_unknown_the_base_is_whole(config):
    lines = []
    assert lay_out(config, 0, ("clinical",), EIGHT, report=lines.append).shape["fsdp"] == 1
    config.mesh.fsdp = 4
    assert lay_out(config, 0, ("clinical",), EIGHT, 1000, report=lines.append).shape["fsdp"] == 4
    assert not lines


def test_tensor_that_does_not_divide_the_devices_is_an_error(config):
    config.mesh.tensor = 3
    with pytest.raises(
        UserError, match="^config.mesh: 8 devices cannot be laid out as fsdp 1 by tensor 3; give tensor 2"
    ):
        lay_out(config, 0, (), EIGHT, 1000)
