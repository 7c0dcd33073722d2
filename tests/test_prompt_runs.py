"""Adapters with virtual tokens through the command line: trained, resumed, evaluated, and under a downstream LoRA."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlora.config import default, prefix, prompt
from jaxlora.data import builders
from jaxlora.data.tokens import Tokenizer
from jaxlora.errors import UserError
from jaxlora.eval.predictions import load
from jaxlora.sweep import member_configs
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh

TABLE = Path(__file__).parents[1] / "configs" / "table.py"
CONFIG = """
import importlib.util
from jaxlora import config as made

def get_config(row):
    found = importlib.util.spec_from_file_location("table", {table!r})
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    config = module.get_config(row)
    config.adapters.clinical = made.{clinical}
    if row != "clinical":
        config.adapters.clinical.workdir = config.get_ref("clinical")
    return config
"""
CLINICAL = {"prefix": prefix(3), "prompt": prompt(3, init="text")}
ROWS = {"prefix": "frozen_downstream", "prompt": "trainable_downstream"}


@pytest.fixture(scope="module", params=["prefix", pytest.param("prompt", marks=pytest.mark.slow)])
def runs(request, small, tmp_path_factory):
    """(technique, the folder of a clinical run, the flags of a downstream run on top of it)."""
    folder = tmp_path_factory.mktemp(request.param)
    fields = {name: value for name, value in CLINICAL[request.param].items() if name not in ("technique", "workdir")}
    made = f"{request.param}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
    (folder / "config.py").write_text(CONFIG.format(table=str(TABLE), clinical=made))

    def flags(row):
        given = [flag for flag in small.flags(row) if "--config=" not in flag]
        return [f"--config={folder / 'config.py'}:{row}", *given, f"--config.clinical={folder / 'clinical'}"]

    workdir = f"--workdir={folder / 'clinical'}"
    assert small.run("train", *flags("clinical"), workdir) == 0
    assert small.run("evaluate", workdir) == 0
    return request.param, folder / "clinical", flags(ROWS[request.param])


def test_the_clinical_adapter_learns(runs):
    found = json.loads((runs[1] / "metrics-test.json").read_text())
    assert found["perplexity"] < found["base_perplexity"]


def test_the_base_sees_no_virtual_token_and_the_same_words_are_counted(runs, small):
    mine = load(runs[1] / "predictions-test.npz")
    split = builders.load(small.data, "notes").split("test")
    lengths = [len(ids) for ids in Tokenizer(small.base).encode([split[i]["text"] for i in range(len(split))])]
    np.testing.assert_array_equal(mine.tokens, np.minimum(lengths, 64) - 1)
    config = default()
    config.base = str(small.base)
    model = assemble(config, 0, make_mesh(1, 1))
    ids = Tokenizer(small.base).encode([split[0]["text"]])[0][:64]
    tokens = np.asarray([ids])
    logits = model.logits(model(tokens, np.ones_like(tokens), np.arange(len(ids))[None]))[0, :-1]
    expected = -float(jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].sum())
    assert mine.base_nll[0] == pytest.approx(expected, rel=1e-4)


def test_it_goes_on_to_the_same_bits(runs, small, stored, tmp_path):
    technique, clinical, _ = runs
    copy = shutil.copytree(clinical, tmp_path / "run")
    steps = sorted(int(path.name) for path in (copy / "checkpoints").iterdir() if path.name.isdigit())
    assert len(steps) > 1
    shutil.rmtree(copy / "checkpoints" / str(steps[-1]))
    flags = [f"--config={clinical.parent / 'config.py'}:clinical", *small.flags("clinical")[1:]]
    assert small.run("train", *flags, f"--config.clinical={clinical}", f"--workdir={copy}") == 0
    before, after = stored(clinical), stored(copy)
    assert {name.split("/")[2] for name in before["model"]} == {"table"}
    assert all(value.tobytes() == after["model"][name].tobytes() for name, value in before["model"].items())


def test_a_downstream_lora_learns_on_top(runs, small, stored, tmp_path):
    technique, clinical, flags = runs
    workdir = tmp_path / "downstream"
    assert small.run("train", *flags, f"--workdir={workdir}") == 0
    assert small.run("evaluate", f"--workdir={workdir}") == 0
    before, after = stored(clinical)["model"], stored(workdir)["model"]
    frozen = ROWS[technique].startswith("frozen")
    assert np.array_equal(before["adapters/clinical/table"], after["adapters/clinical/table"]) == frozen
    assert all(np.any(after[f"blocks/{name}/adapters/downstream/b"]) for name in ("q_proj", "v_proj"))
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_it_generates(runs, small, capsys):
    flags = [f"--workdir={runs[1]}", "--prompt=The patient", "--new-tokens=16"]
    capsys.readouterr()
    assert small.run("generate", *flags) == 0
    assert capsys.readouterr().out.strip()


def test_it_goes_to_peft_and_into_no_weight(runs, small, refused, tmp_path):
    technique, clinical, _ = runs
    assert small.run("export-adapter", f"--workdir={clinical}", f"--output={tmp_path / 'adapter'}") == 0
    raw = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (raw["peft_type"], raw["num_virtual_tokens"]) == (f"{technique.upper()}_TUNING", 3)
    line = refused("export-model", f"--workdir={clinical}", f"--output={tmp_path / 'model'}")
    assert f"'clinical' of {clinical} is of technique '{technique}', which changes no weight" in line


def test_a_sweep_takes_loras_alone(runs):
    config = default()
    config.adapters.clinical = CLINICAL[runs[0]]
    config.sweep = (("one", {"seed": 1}),)
    with pytest.raises(UserError, match=f"clinical is of technique '{runs[0]}'"):
        member_configs(config)


def test_another_size_is_refused(runs, small, refused, tmp_path):
    technique, clinical, flags = runs
    given = [*flags, "--config.adapters.clinical.virtual_tokens=4", f"--workdir={tmp_path / 'other'}"]
    assert f"give {technique}(virtual_tokens=3" in refused("train", *given)


def test_a_prompt_starts_from_its_text(small_base):
    config = default()
    config.base, config.active = str(small_base), ("clinical",)
    config.adapters.clinical = prompt(40, init="text")
    model = assemble(config, 0, make_mesh(1, 1))
    ids = Tokenizer(small_base).encode(["Finish this clinical note: "])[0]
    assert 1 < len(ids) < 40
    wanted = np.asarray(model.embedding[...])[(ids * 40)[:40]]
    np.testing.assert_array_equal(model.adapters["clinical"].table[...], wanted)
