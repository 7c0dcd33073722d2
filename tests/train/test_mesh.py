"""Training laid over up to eight (pretended) devices is training on one. This file is also the script they run."""

import hashlib
import json
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxlora import partition
from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.mesh_rules import RULES
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import check_batch, make_mesh, put_batch, shardings
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import init_state, make_train_step


def digest(state) -> str:
    total = hashlib.sha256()
    for _, leaf in sorted(nnx.to_flat_state(state)):
        total.update(np.asarray(leaf[...]).tobytes())
    return total.hexdigest()


def train(base: str, devices: int = 1, fsdp: int = 1, tensor: int = 1, accumulate: int = 1, labels: int = 3) -> dict:
    """Three updates of two adapters, one frozen, and a head, on some devices; what happened, as JSON holds it. Without
    labels there is no head, and it is the language model that learns."""
    config = default()
    config.base = base
    config.adapters.clinical = adapter(4, 8)
    config.adapters.downstream = adapter(2, 4, targets=("o_proj", "down_proj"), dora=True, init="pissa_niter_8")
    config.active = ("clinical", "downstream")
    mesh = make_mesh(fsdp, tensor, jax.devices()[:devices])
    model = assemble(config, labels, mesh)
    definition, params, frozen = partition.split(model, ["downstream", "head"] if labels else ["downstream"])
    before = digest(frozen)
    optimizer = make_optimizer(optax.constant_schedule(1e-2), weight_decay=0.01, clip=1.0)
    state = init_state(params, optimizer, mesh)
    weights = {"class_weights": (0.5, 1.0, 2.0)} if labels else {"loss_chunk": 4}
    objective = Objective("multiclass" if labels else "lm", config.active, **weights)
    step = make_train_step(definition, optimizer, objective, False, state, mesh, accumulate)
    rng, losses = np.random.default_rng(0), []
    for update in range(3):
        batch = {
            "tokens": rng.integers(1, 32, (16, 16)),
            "segments": np.repeat([[1, 2]] * 16, 8, axis=1),
            "positions": np.tile(np.arange(8), (16, 2)),
            "notes": np.arange(1, 33).reshape(16, 2),
            "labels": rng.integers(3, size=(16, 2)),
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
    return {3: train(base), 0: train(base, labels=0)}


@pytest.fixture(scope="module")
def many(base, pretended):
    """What two, four and eight devices did, by mesh, in a process of their own."""
    done = subprocess.run([sys.executable, __file__, base], env=pretended(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


MESHES = {
    "data 2": (2,),
    "fsdp 2, tensor 2": (4, 2, 2),
    "data 2, fsdp 2, tensor 2, in two parts": (8, 2, 2, 2),
    "language model, fsdp 4, tensor 2": (8, 4, 2, 1, 0),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_weights_are_those_of_one_device(one, many, mesh):
    wanted = one[0 if mesh.startswith("language") else 3]
    assert len(set(wanted["losses"])) == 3
    assert many[mesh]["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
    assert many[mesh]["trained"] == pytest.approx(wanted["trained"], rel=1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_base_is_loaded_bit_for_bit_on_any_mesh(one, many, mesh):
    assert many[mesh]["frozen"] == one[0 if mesh.startswith("language") else 3]["frozen"]


@pytest.mark.parametrize("mesh", MESHES)
def test_frozen_bits_stay_and_the_step_is_compiled_once(one, many, mesh):
    for run in (*one.values(), many[mesh]):
        assert run["frozen kept"] and run["compiled"] == 1


def test_rows_lie_over_data_and_fsdp(many):
    rows = {mesh: many[mesh]["rows of a device"] for mesh in MESHES}
    assert list(rows.values()) == [8, 8, 4, 4]  # of sixteen


def test_base_is_cut_along_fsdp_and_tensor(many):
    specs = many["fsdp 2, tensor 2"]["specs"]
    assert specs["embedding"] == ["tensor", "fsdp"]
    assert specs["blocks.q_proj.kernel"] == [None, "fsdp", "tensor"]
    assert specs["blocks.down_proj.kernel"] == [None, "tensor", "fsdp"]
    assert specs["blocks.k_proj.bias"] == [None, "tensor"]
    assert specs["norm.scale"] == [None] and specs["head.kernel"] == [None, None]


def test_adapters_and_their_moments_follow_the_kernel(many):
    specs = many["fsdp 2, tensor 2"]["specs"]
    followed = [path for path in specs if ".adapters." in path]
    assert len(followed) == 14
    for path in followed:
        _, features_in, features_out = specs[".".join(path.split(".")[:2]) + ".kernel"]
        wanted = {"a": [None, features_in, None], "b": [None, None, features_out], "magnitude": [None, features_out]}
        assert specs[path] == wanted[path.split(".")[-1]]
    assert many["fsdp 2, tensor 2"]["moments"]


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


def test_axis_that_does_not_divide_is_kept_whole():
    state = nnx.State({"embedding": nnx.Param(np.zeros((7, 8)))})
    assert shardings(abstract_mesh(1, 2, 2), state)[("embedding",)].spec == P(None, "fsdp")


def test_rules_of_the_config_lay_out_the_parameters():
    state = nnx.State({"lm_head": nnx.Param(np.zeros((8, 8)))})
    rules = {**RULES, "embed": "", "vocab": "fsdp"}
    assert shardings(abstract_mesh(1, 2, 2), state, rules)[("lm_head",)].spec == P(None, "fsdp")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"embed": "fsdb"}, "config.mesh.rules.embed: no mesh axis 'fsdb'; valid: data, fsdp, tensor, ''"),
        ({"head": "tensor"}, "config.mesh.rules: no logical axis 'head'; did you mean 'heads'?"),
        (
            {"embed": "tensor"},
            "config.mesh.rules: embed and vocab are both laid over tensor",
        ),
    ],
    ids=["mesh axis", "logical axis", "twice"],
)
def test_rules_that_cannot_be_are_errors(rule, message):
    state = nnx.State({"lm_head": nnx.Param(np.zeros((8, 8)))})
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        shardings(abstract_mesh(1, 2, 2), state, RULES | rule)


@pytest.mark.parametrize(
    ("fsdp", "tensor", "remedy"),
    [
        (3, 1, "fsdp 2 or 4"),
        (2, 4, "fsdp 1"),
        (1, 8, "tensor 4"),
        (16, 1, "fsdp 4"),
        (0, 1, "fsdp 1"),
        (1, 0, "tensor 1"),
    ],
)
def test_mesh_that_does_not_divide_the_devices_is_an_error(fsdp, tensor, remedy):
    message = f"config.mesh: 4 devices cannot be laid out as fsdp {fsdp} by tensor {tensor}; give {remedy}"
    with pytest.raises(UserError, match=f"^{message}$"):
        make_mesh(fsdp, tensor, 4 * jax.devices())


@pytest.mark.parametrize(
    ("rows", "accumulate", "remedy"), [(6, 1, "4 or 8"), (3, 1, "4"), (0, 1, "4"), (20, 3, "12 or 24")]
)
def test_batch_that_does_not_divide_is_an_error(rows, accumulate, remedy):
    with pytest.raises(UserError, match=f"^config.batch_size is {rows}; .* 2 data by 2 fsdp .*: give {remedy}$"):
        check_batch(abstract_mesh(2, 2, 1), rows, accumulate)


def test_batch_that_divides_is_none():
    assert check_batch(abstract_mesh(2, 2, 1), 24, 3) is None


if __name__ == "__main__":
    print(json.dumps({name: train(sys.argv[1], *mesh) for name, mesh in MESHES.items()}))
