"""Training laid over four (pretended) devices is training on one. This file is also the script that the four run."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh, put_batch, shardings
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compiles")


def digest(state) -> str:
    total = hashlib.sha256()
    for _, leaf in sorted(nnx.to_flat_state(state)):
        total.update(np.asarray(leaf[...]).tobytes())
    return total.hexdigest()


def train(base: str, fsdp: int, tensor: int) -> dict:
    """Three updates of two adapters, one frozen, and a head, on all devices; what happened, as JSON holds it."""
    config = default()
    config.base = base
    config.adapters.clinical = adapter(4, 8)
    config.adapters.downstream = adapter(2, 4, targets=("o_proj", "down_proj"), dora=True, init="pissa_niter_8")
    config.active = ("clinical", "downstream")
    mesh = make_mesh(fsdp, tensor)
    model = assemble(config, 3, mesh)
    definition, params, frozen = partition.split(model, ["downstream", "head"])
    before = digest(frozen)
    optimizer = make_optimizer(optax.constant_schedule(1e-2), weight_decay=0.01, clip=1.0)
    state = init_state(params, optimizer, mesh)
    step = make_train_step(definition, optimizer, Objective("multiclass", config.active), False, state, mesh)
    rng, losses = np.random.default_rng(0), []
    for update in range(3):
        batch = {
            "tokens": rng.integers(1, 32, (4, 16)),
            "segments": np.repeat([[1, 2]] * 4, 8, axis=1),
            "positions": np.tile(np.arange(8), (4, 2)),
            "notes": np.arange(1, 9).reshape(4, 2),
            "labels": rng.integers(3, size=(4, 2)),
        }
        batch = put_batch(mesh, {name: rows.astype(np.int32) for name, rows in batch.items()})
        state, metrics = step(state, frozen, batch, jax.random.key(update))
        losses.append(float(metrics["loss"]))
    trained = nnx.merge_state(state.params, frozen)
    flat = nnx.to_flat_state(trained)
    moments = nnx.to_flat_state(optax.tree_utils.tree_get(state.optimizer, "mu"))
    return {
        "losses": losses,
        "compiled": step._cache_size(),
        "frozen": digest(partition.select(frozen, ["base"])),
        "frozen kept": digest(frozen) == before,
        "trained": [float(np.abs(np.asarray(leaf[...])).sum()) for _, leaf in nnx.to_flat_state(state.params)],
        "specs": {".".join(p): [*leaf[...].sharding.spec, *[None] * 3][: leaf[...].ndim] for p, leaf in flat},
        "moments": all(dict(flat)[p][...].sharding == leaf[...].sharding for p, leaf in moments),
        "rows of a device": batch["tokens"].addressable_shards[0].data.shape[0],
    }


@pytest.fixture(scope="module")
def base(random_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    huggingface.save(folder, random_llama(biases=("q_proj", "k_proj", "v_proj")))
    return str(folder)


@pytest.fixture(scope="module")
def one(base):
    return train(base, 1, 1)


@pytest.fixture(scope="module")
def four(base):
    """What four devices did, by mesh, in a process of their own."""
    root = Path(__file__).parents[2]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__, base],
        env={**os.environ, **flags, "PYTHONPATH": str(root), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


MESHES = ["data", "fsdp and tensor"]


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_weights_are_those_of_one_device(one, four, mesh):
    assert len(set(one["losses"])) == 3
    assert four[mesh]["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert four[mesh]["trained"] == pytest.approx(one["trained"], rel=1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_base_is_loaded_bit_for_bit_on_any_mesh(one, four, mesh):
    assert four[mesh]["frozen"] == one["frozen"]


@pytest.mark.parametrize("mesh", MESHES)
def test_frozen_bits_stay_and_the_step_is_compiled_once(one, four, mesh):
    for run in (one, four[mesh]):
        assert run["frozen kept"] and run["compiled"] == 1


def test_rows_lie_over_data_and_fsdp(four):
    assert four["data"]["rows of a device"] == 1  # of four rows
    assert four["fsdp and tensor"]["rows of a device"] == 2


def test_base_is_cut_along_fsdp_and_tensor(four):
    specs = four["fsdp and tensor"]["specs"]
    assert specs["embedding"] == ["tensor", "fsdp"]
    assert specs["blocks.q_proj.kernel"] == [None, "fsdp", "tensor"]
    assert specs["blocks.down_proj.kernel"] == [None, "tensor", "fsdp"]
    assert specs["blocks.k_proj.bias"] == [None, "tensor"]
    assert specs["norm.scale"] == [None] and specs["head.kernel"] == [None, None]


def test_adapters_and_their_moments_follow_the_kernel(four):
    specs = four["fsdp and tensor"]["specs"]
    followed = [path for path in specs if ".adapters." in path]
    assert len(followed) == 14
    for path in followed:
        _, features_in, features_out = specs[".".join(path.split(".")[:2]) + ".kernel"]
        wanted = {"a": [None, features_in, None], "b": [None, None, features_out], "magnitude": [None, features_out]}
        assert specs[path] == wanted[path.split(".")[-1]]
    assert four["fsdp and tensor"]["moments"]


def test_axis_that_does_not_divide_is_kept_whole(four):
    assert four["odd"] == [None, "fsdp"]  # 7 by 8, over 2 by 2


@pytest.mark.parametrize("fsdp, tensor", [(3, 1), (2, 4), (1, 8)])
def test_mesh_that_does_not_divide_the_devices_is_an_error(four, fsdp, tensor):
    message = f"config.mesh: 4 devices cannot be laid out as fsdp {fsdp} by tensor {tensor}"
    assert four["refused"][f"{fsdp} {tensor}"] == message


@pytest.mark.parametrize("fsdp, tensor", [(2, 1), (0, 1), (1, 0), (-1, -1)])
def test_impossible_mesh_is_an_error_on_one_device(fsdp, tensor):
    with pytest.raises(UserError, match="^config.mesh: 1 devices cannot be laid out as fsdp"):
        make_mesh(fsdp, tensor)


def _refusal(fsdp: int, tensor: int) -> str:
    try:
        return f"accepted: {make_mesh(fsdp, tensor)}"
    except UserError as error:
        return str(error)


def _odd_spec() -> list:
    """How a head of an odd vocabulary is laid: the axis that tensor 2 does not divide, whole."""
    state = nnx.State({"embedding": nnx.Param(np.zeros((7, 8)))})
    return list(shardings(make_mesh(2, 2), state)[("embedding",)].spec)


if __name__ == "__main__":
    refused = {f"{fsdp} {tensor}": _refusal(fsdp, tensor) for fsdp, tensor in [(3, 1), (2, 4), (1, 8)]}
    runs = {"data": train(sys.argv[1], 1, 1), "fsdp and tensor": train(sys.argv[1], 2, 2)}
    print(json.dumps({**runs, "refused": refused, "odd": _odd_spec()}))
