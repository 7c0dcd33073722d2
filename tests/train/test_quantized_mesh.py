"""A quantised base on four (pretended) devices is that of one. This file is also the script that the four run."""

import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora.config import adapter, default
from jaxlora.interop import huggingface
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh, traced_on

ROWS = np.arange(1, 33).reshape(4, 8) % 32, np.ones((4, 8), np.int32), np.tile(np.arange(8), (4, 1))


def run(base: str, fsdp: int, tensor: int) -> dict:
    """The codes and scales of a base, where they lie, and what the model computes with them, as JSON holds it."""
    config = default()
    config.base, config.quantize = base, "nf4"
    config.adapters.clinical = adapter(2, 4)
    config.active = config.trainable = ("clinical",)
    mesh = make_mesh(fsdp, tensor)
    definition, state = nnx.split(assemble(config, 0, mesh))
    hidden = jax.jit(traced_on(mesh, lambda state: nnx.merge(definition, state)(*ROWS, ("clinical",)).sum(axis=-1)))
    flat = [(".".join(path), leaf) for path, leaf in nnx.to_flat_state(state) if path[-1] in ("codes", "scales")]
    return {
        "bits": {name: hashlib.sha256(np.asarray(leaf[...]).tobytes()).hexdigest() for name, leaf in flat},
        "specs": {name: [*leaf[...].sharding.spec, *[None] * 3][:3] for name, leaf in flat},
        "hidden": np.asarray(hidden(state)).tolist(),
    }


@pytest.fixture(scope="module")
def base(random_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    huggingface.save(folder, random_llama(embed=128, mlp=192))  # two tiles, and three
    return str(folder)


@pytest.fixture(scope="module")
def one(base):
    return run(base, 1, 1)


@pytest.fixture(scope="module")
def four(base, pretended):
    """What four devices did, two by two, in a process of their own."""
    done = subprocess.run([sys.executable, __file__, base], env=pretended(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_codes_are_those_of_one_device_bit_for_bit(one, four):
    assert len(one["bits"]) == 14 and four["bits"] == one["bits"]


def test_model_computes_the_same(one, four):
    np.testing.assert_allclose(four["hidden"], one["hidden"], rtol=1e-4, atol=1e-4)


def test_codes_and_scales_are_cut_as_the_kernel_is(four):
    specs = four["specs"]
    assert specs["blocks.up_proj.kernel.codes"] == specs["blocks.up_proj.kernel.scales"] == [None, "fsdp", "tensor"]
    assert specs["blocks.down_proj.kernel.codes"] == [None, "tensor", "fsdp"]
    assert specs["blocks.down_proj.kernel.scales"] == [None, None, "fsdp"]  # of three tiles, over two


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], 2, 2)))
