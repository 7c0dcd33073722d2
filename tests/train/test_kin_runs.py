"""Whole runs of (IA)^3, of AdaLoRA and of full fine-tuning: trained, resumed, evaluated, built upon, exported."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from jaxlora import pipeline
from jaxlora.config import adalora, ia3
from jaxlora.errors import UserError
from jaxlora.exchange import export_adapter, export_model
from jaxlora.interop import peft
from jaxlora.interop.llama_config import read_config
from jaxlora.interop.tensors import model_files
from jaxlora.train import update as train_update


@pytest.fixture
def config_of(small):
    """The config of a step on the small notes: `config_of(step, clinical, workdir)`."""

    def make(step, clinical=None, workdir=""):
        config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "table.py"))["get_config"](step)
        config.path, config.base, config.data.dir = str(small.notes), str(small.base), str(small.data)
        config.data.length, config.batch_size, config.epochs, config.learning_rate = 64, 4, 1, 0.01
        config.clinical = str(workdir)
        if clinical is not None:
            clinical.workdir = str(workdir)
            config.adapters.clinical = clinical
        return config

    return make


def trained_parts(stored, run):
    return {name: value for name, value in stored(run)["model"].items() if "/clinical/" in name}


def test_ia3_is_trained_and_carries_a_lora_and_is_merged(config_of, stored, tmp_path):
    clinical, downstream = tmp_path / "clinical", tmp_path / "downstream"
    pipeline.train_run(config_of("clinical", ia3()), str(clinical))
    vectors = trained_parts(stored, clinical)
    assert {tuple(name.split("/")[i] for i in (1, 4)) for name in vectors} == {
        ("k_proj", "gain_out"),
        ("v_proj", "gain_out"),
        ("down_proj", "gain_in"),
    }
    assert all(np.all(value != 1.0) for value in vectors.values())
    found = pipeline.evaluate_run(str(clinical))
    assert found["perplexity"] < found["base_perplexity"]

    pipeline.train_run(config_of("frozen_downstream", ia3(), clinical), str(downstream))
    for name, value in trained_parts(stored, downstream).items():
        assert value.tobytes() == vectors[name].tobytes()
    assert np.any(stored(downstream)["model"]["blocks/v_proj/adapters/downstream/b"])
    assert 0 <= pipeline.evaluate_run(str(downstream))["auroc"] <= 1

    told = export_model(str(downstream), str(tmp_path / "model"))
    assert float(told.split()[3]) < 1e-4
    with pytest.raises(UserError, match="clinical is of technique 'ia3', .* --adapters=clinical, or take export-model"):
        export_adapter(str(downstream), str(tmp_path / "adapter"))


def test_adalora_in_parts_stopped_and_resumed_ends_in_the_same_bits_and_at_its_target(
    config_of, stored, small, tmp_path, sigterm_at
):
    config = config_of("clinical", adalora(6, 2, 12, end=1))
    config.accumulate = 2
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pipeline.train_run(config, str(whole))
    with sigterm_at(train_update, "make_train_step", 4):
        pipeline.train_run(config, str(halves))
    assert stored(halves)["optimizer"]["1/count"] == 4 < stored(whole)["optimizer"]["1/count"]
    pipeline.train_run(config, str(halves))
    for part in ("model", "optimizer"):
        one, two = stored(whole)[part], stored(halves)[part]
        assert one.keys() == two.keys()
        assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []
    left = [np.count_nonzero(x, axis=1) for name, x in trained_parts(stored, whole).items() if name.endswith("/e")]
    assert np.sum(left) == 2 * 4  # in q and v of two layers

    told = export_adapter(str(whole), str(tmp_path / "adapter"))
    assert told == "clinical: adalora(rank=6, alpha=12.0, target_rank=2, end=1)"
    read = peft.read(tmp_path / "adapter", read_config(small.base))
    assert sum(np.count_nonzero(here["e"]) for here in read.weights.values()) == 2 * 4
    told = export_adapter(str(whole), str(tmp_path / "lora"), combination="svd", rank=6)
    assert told.startswith("clinical: rank ") and float(told.split()[-1]) < 1e-6
    assert float(export_model(str(whole), str(tmp_path / "model")).split()[3]) < 1e-4


def test_a_budget_that_has_no_updates_to_fall_in(config_of, tmp_path):
    with pytest.raises(UserError, match=r"config.adapters.clinical: start 900 and end 100 leave none of the run's \d+"):
        pipeline.train_run(config_of("clinical", adalora(start=900, end=100)), str(tmp_path / "run"))


def test_full_fine_tuning_trains_the_base_and_evaluates_it(config_of, stored, small, tmp_path, sigterm_at):
    config, run, halves = config_of("full"), tmp_path / "run", tmp_path / "halves"
    config.learning_rate, config.dtype = 1e-3, "bfloat16"
    pipeline.train_run(config, str(run))
    after, before = stored(run)["model"], model_files(small.base)
    assert after["embedding"].dtype == np.float32  # in bfloat16, most of an update would be lost
    old = before.read("model.layers.1.mlp.up_proj.weight").T
    assert np.mean(after["blocks/up_proj/kernel"][1] != old) > 0.99 and "head/kernel" in after
    with sigterm_at(train_update, "make_train_step", 3):
        pipeline.train_run(config, str(halves))
    pipeline.train_run(config, str(halves))
    resumed = stored(halves)["model"]
    assert [name for name in after if after[name].tobytes() != resumed[name].tobytes()] == []
    assert pipeline.evaluate_run(str(run)) == pipeline.evaluate_run(str(halves))

    config.quantize = "int8"
    with pytest.raises(UserError, match="config.trainable names the base, which config.quantize = 'int8' keeps frozen"):
        pipeline.train_run(config, str(tmp_path / "quantized"))
    assert float(export_model(str(run), str(tmp_path / "model")).split()[3]) < 1e-4
