"""Runs on a quantised base: trained, evaluated, exported; refused where they make no sense."""

import json
import re

import pytest

QUANTIZED = "--config.quantize=nf4"


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quantized") / "run"
    assert trained.run("train", *trained.flags("clinical"), QUANTIZED, f"--workdir={workdir}") == 0
    return workdir


def test_it_learns_and_is_evaluated_on_the_quantised_base(trained, workdir):
    assert trained.run("evaluate", f"--workdir={workdir}") == 0
    found, exact = (json.loads((run / "metrics-test.json").read_text()) for run in (workdir, trained.clinical))
    assert found["perplexity"] < found["base_perplexity"]
    assert found["base_perplexity"] == pytest.approx(exact["base_perplexity"], rel=0.1)
    assert found["base_perplexity"] != exact["base_perplexity"]


def test_its_checkpoint_holds_no_base(trained, workdir, stored):
    assert set(stored(workdir)["model"]) == set(stored(trained.clinical)["model"])


def test_start_tells_how_far_the_base_is_from_its_files(trained, workdir, capsys):
    assert trained.run("train", *trained.flags("clinical"), QUANTIZED, f"--workdir={workdir}") == 0
    out = capsys.readouterr().out
    found = re.search(
        r"^base in nf4: relative error of the kernels (.*)% on average, (.*)% at most \(model\.", out, re.M
    )
    assert 5 < float(found[1]) < float(found[2]) < 11


def test_exported_model_has_the_original_weights_and_says_so(trained, workdir, tmp_path, capsys):
    assert trained.run("export-model", f"--workdir={workdir}", f"--output={tmp_path / 'model'}") == 0
    out = capsys.readouterr().out
    assert "the run's base is in nf4, the written model's weights are the original ones" in out
    assert float(out.split()[3]) > 1e-4


def test_precision_that_does_not_exist_is_refused(trained, refused, tmp_path):
    flags = [*trained.flags("clinical"), "--config.quantize=int4", f"--workdir={tmp_path / 'run'}"]
    assert refused("train", *flags) == "jaxlora: config.quantize: no 'int4'; did you mean 'int8'?"


def test_quantised_base_is_not_trained(trained, refused, tmp_path):
    flags = [*trained.flags("clinical"), QUANTIZED, "--config.trainable=('base',)", f"--workdir={tmp_path / 'run'}"]
    assert "config.trainable names the base, which config.quantize = 'nf4' keeps frozen" in refused("train", *flags)
