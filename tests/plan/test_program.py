import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from jaxlora.config import adaptation_prompt, adapter, default, prefix
from jaxlora.errors import UserError
from jaxlora.plan import program
from jaxlora.plan.program import Aim, aim_of, compiled, device_bytes, lower
from jaxlora.train import update as train_update
from jaxlora.train.mesh import make_mesh
from jaxlora.train.optimizer import schedule

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def config(tmp_path):
    """Two adapters on a base of which there is a config.json and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    config = default()
    config.base, config.batch_size, config.data.length = str(tmp_path), 2, 32
    config.adapters.clinical, config.adapters.downstream = adapter(4, 8), adapter(2, 4)
    config.active, config.trainable = ("clinical", "downstream"), ("downstream",)
    return config


class _Traced(Exception):
    """Carries the step of a run that was to start."""


def _without_constants(text):
    return re.sub(r"dense<[^>]*>", "dense<>", text)


@pytest.mark.parametrize("step", ["clinical", "lora"])
def test_the_program_is_that_of_train(small, tmp_path, monkeypatch, step):
    """Its numbers (the class weights) may differ, and nothing else."""
    make = train_update.make_train_step

    def caught(*arguments):
        update = make(*arguments)

        def traced(*arguments):
            raise _Traced(update.lower(*arguments).as_text())

        return traced

    def scheduled(peak, updates, *others):
        monkeypatch.setattr(program, "_UPDATES", updates)  # a short run's schedule has other branches
        return schedule(peak, updates, *others)

    flags = [*small.flags(step), "--config.accumulate=2", "--config.clip=1.0"]
    with monkeypatch.context() as patch, pytest.raises(_Traced) as found:
        patch.setattr(train_update, "make_train_step", caught)
        patch.setattr(train_update, "schedule", scheduled)
        small.run("train", *flags, f"--workdir={tmp_path}")

    spec = importlib.util.spec_from_file_location("table", Path(__file__).parents[2] / "configs" / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    config = table.get_config(step)
    config.update_from_flattened_dict(
        {"base": str(small.base), "data.dir": str(small.data), "data.length": 64, "batch_size": 4, "accumulate": 2}
    )
    config.clip = 1.0
    aim = aim_of(config)
    assert aim.kind == ("lm" if step == "clinical" else "multiclass") and "dataset" in aim.source
    text = lower(config, aim, make_mesh(1, 1))[0].as_text()
    assert _without_constants(text) == _without_constants(str(found.value))


def test_memory_is_told_by_kind(config):
    planned = compiled(config, aim_of(config), make_mesh(1, 1))
    embed, mlp, layers, vocab = 16, 24, 2, 32
    attention = 2 * embed * embed + 2 * embed * 8  # two heads of 8, one of keys and values
    base = layers * (attention + 3 * embed * mlp + 2 * embed) + 2 * vocab * embed + embed
    trained = layers * 2 * (embed + embed + embed + 8)
    kinds = {"base": 4 * base, "adapters and head": 4 * 3 * trained, "optimizer": 4 * 2 * trained + 4 + 4}
    assert {name: planned.kinds[name] for name in kinds} == kinds
    assert planned.kinds["batch"] == 4 * 2 * (3 * 32 + 2)
    assert planned.temporaries > 0 and planned.total > sum(kinds.values()) and planned.seconds > 0
    # What is returned lies where it came in, but for the two metrics: no copy of the base among it.
    assert planned.outputs - planned.aliased < 256


def test_virtual_tokens_are_positions_of_the_rows(config):
    config.adapters.clinical = prefix(3)
    assert lower(config, aim_of(config), make_mesh(1, 1))[1]["batch"] == 4 * 2 * (3 * 35 + 2)
    config.adapters.clinical = adaptation_prompt(3, 1)
    config.trainable = ("clinical",)
    assert lower(config, aim_of(config), make_mesh(1, 1))[1]["batch"] == 4 * 2 * (3 * 32 + 2)


def test_what_is_assumed_is_said(config):
    assert aim_of(config) == Aim("lm", 0, "assumed, as the dataset is not prepared here: a language model")
    config.trainable = ("downstream", "head")
    assert aim_of(config).labels == 2


def test_four_bits_are_half_a_byte():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert device_bytes([jax.ShapeDtypeStruct((3, 6), "int4", sharding=sharding)]) == 9


@pytest.mark.parametrize(
    "message, found",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 45.41G of 31.25G hbm. Exceeded hbm capacity "
         "by 14.16G.", (45.41, 31.25)),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (960.00G) "
         "exceeds available HBM (15.75G).", (960.0, 15.75)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
        ("INTERNAL: Used 45.41G of 31.25G hbm.", None),
    ],
)  # fmt: skip
def test_the_compilers_refusal_is_understood(message, found):
    assert program._too_large(message) == (found and tuple(size * 2**30 for size in found))


def test_a_mistake_in_the_config_stays_a_users_mistake(config):
    config.remat = "fulll"
    with pytest.raises(UserError, match="config.remat"):
        lower(config, aim_of(config), make_mesh(1, 1))
