"""The LoRA family through the command line: trained, restored, resumed and exported as the plain adapters are."""

import json

import numpy as np
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.restore import RestoredRun

FAMILY = {
    "dora": ["dora=True"],
    "pissa": ["init=pissa"],
    "rslora": ["rslora=True", "targets=('all-linear',)"],
    "ragged": ["ranks=(('layers.0.self_attn.q_proj',2),)", "alphas=(('v_proj',4.0),)", "layers=(0,)"],
}


@pytest.fixture(scope="module", params=FAMILY, ids=FAMILY)
def run(request, trained, tmp_path_factory):
    """A downstream run of one kind of adapter, on the frozen clinical one; its folder and its flags."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    fields = [f"--config.adapters.downstream.{field}" for field in FAMILY[request.param]]
    fields += ["--config.b_rate=2.0", "--config.learning_rate=0.003"]
    flags = [*trained.flags("frozen_downstream"), *fields, f"--workdir={workdir}"]
    assert trained.run("train", *flags) == 0
    return workdir, flags


def test_it_learns_and_is_evaluated(trained, run):
    rows = [json.loads(line) for line in (run[0] / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert trained.run("evaluate", f"--workdir={run[0]}") == 0


def test_its_checkpoint_holds_every_parameter_but_the_base(run, stored):
    model = RestoredRun(str(run[0])).model
    parts = set(partition.partitions(model)) - {"base"}
    wanted = {"/".join(path) for path, _ in partition.items(nnx.state(model), parts)}
    assert set(stored(run[0])["model"]) == wanted


def test_it_is_not_trained_again(trained, run, stored):
    before = stored(run[0])["model"]
    assert trained.run("train", *run[1]) == 0
    for name, value in stored(run[0])["model"].items():
        np.testing.assert_array_equal(value, before[name])


def test_alone_it_goes_out_and_comes_back(trained, run, tmp_path):
    out, back, again = tmp_path / "out", tmp_path / "back", tmp_path / "again"
    flags = ["--adapters=downstream", f"--output={out}"]
    assert trained.run("export-adapter", f"--workdir={run[0]}", *flags) == 0
    flags = [f"--adapter={out}", f"--base={trained.base}", f"--workdir={back}", "--name=downstream"]
    assert trained.run("import-adapter", *flags) == 0
    assert trained.run("export-adapter", f"--workdir={back}", f"--output={again}") == 0
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_merged_it_computes_the_same(trained, run, tmp_path, capsys):
    assert trained.run("export-model", f"--workdir={run[0]}", f"--output={tmp_path / 'model'}") == 0
    assert float(capsys.readouterr().out.split()[3]) < 1e-4


def test_with_the_clinical_adapter_it_becomes_one_where_it_is_a_sum(trained, run, tmp_path):
    is_dora = json.loads((run[0] / "config.json").read_text())["adapters"]["downstream"]["dora"]
    status = trained.run("export-adapter", f"--workdir={run[0]}", f"--output={tmp_path / 'one'}")
    assert status == (2 if is_dora else 0)
    assert (tmp_path / "one" / "adapter_model.safetensors").exists() != is_dora
