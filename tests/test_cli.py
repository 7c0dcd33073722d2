"""The command line: quick help, and one line for every mistake."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlora import cli
from jaxlora.arguments import parse
from jaxlora.errors import UserError

ROOT = Path(__file__).parents[1]
TABLE = f"--config={ROOT / 'configs' / 'table.py'}"
DEMO = "--config=configs/demo.py"


def process(*arguments):
    return subprocess.run([sys.executable, "-m", "jaxlora.cli", *arguments], capture_output=True, text=True, cwd=ROOT)


def seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_lists_each_verb_in_a_line_and_takes_less_than_a_second():
    before = seconds_of_children()
    result = process("--help")
    assert seconds_of_children() - before < 1
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == list(cli.VERBS)
    assert all(len(line) > 4 for line in lines)


def test_help_does_not_import_jax():
    program = "import sys; from jaxlora import cli; cli.main(['jaxlora', '--help']); print(*sys.modules, sep='\\n')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "jaxlora.cli" in result.stdout.split()
    assert not {"jax", "flax", "numpy", "tensorflow", "torch"} & set(result.stdout.split())


def test_no_arguments_is_help(small, capsys):
    assert cli.main(["jaxlora"]) == 0
    assert capsys.readouterr().out.startswith("usage: jaxlora VERB")


def test_the_help_of_a_verb_names_its_flags(small, capsys):
    assert small.run("predict", "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: jaxlora predict --workdir=... --input=... --output=...\n")
    assert [line.split()[0].split("=")[0] for line in told.splitlines()[2:]] == [
        *("--workdir", "--input", "--output", "--id", "--text", "--base", "--allow-base-mismatch")
    ]


def test_a_mistake_is_status_2_and_one_line_of_a_real_process():
    result = process("trian", TABLE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "jaxlora: no verb 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalaute"], "no verb 'evalaute'; did you mean 'evaluate'?"),
        (["x"], "no verb 'x'; valid: audit, card, demo, evaluate, "),
        (["train", "--wrokdir=x", TABLE], "'wrokdir'. Did you mean: workdir"),
        (["train", "x", TABLE], "unexpected 'x'"),
        (["train", "--config=configs/tabel.py"], "--config: no file configs/tabel.py; did you mean 'table.py'?"),
        (["train", "--config", "configs/tabel.py"], "--config: no file configs/tabel.py; did you mean 'table.py'?"),
        (["train", "--config=", "--workdir=x"], "--config is empty"),
        (["train", f"{TABLE}:clincal"], "configs/table.py: no 'clincal'; did you mean 'clinical'?"),
        (["train", "--config=configs/public_notes.py:nope"], "configs/public_notes.py: no 'nope'; valid: clinical, "),
        (["train", TABLE, "--config.epocs=3"], "--config.epocs: no such field; did you mean 'epochs'?"),
        (["train", TABLE, "--config.epocs", "3"], "--config.epocs: no such field; did you mean 'epochs'?"),
        (["train", TABLE, "--config.data.lenght=3"], "--config.data.lenght: no such field; did you mean 'length'?"),
        (["train", TABLE, "--config.dta.length=3"], "--config.dta.length: no such field; did you mean 'data'?"),
        (["train", TABLE, "--config.adapters.clinicl.rank=3"], "no such field; did you mean 'clinical'?"),
        (["train", TABLE, "--config.epochs=three"], "--config.epochs=three: invalid literal"),
        (["train", TABLE, "--config.learning_rate=fast"], "--config.learning_rate=fast"),
        (["train", "--workdir=x"], "--config is not set"),
        (["train", TABLE], "--workdir is not set"),
        (["train", TABLE, "--workdir=x", "--output=y"], "Unknown command line flag 'output'"),
        (["generate", "--new-tokens=x"], "--new_tokens=x"),
        (["generate", "--prompt=a"], "--base is not set; give it, or the --workdir of a run"),
        (["generate", "--input=x.csv"], "--output is not set; give it, or --prompt"),
        (["generate", "--prompt=a", "--base=x", "--top-p=0"], "--top-p is 0.0; it must be above 0 and at most 1"),
        (["import-adapter", "--base=x", "--workdir=y"], "--adapter is not set"),
        (["export-adapter", "--workdir=/nowhere", "--output=y"], "/nowhere has no config.json"),
        (["export-model", "--workdir=x"], "--output is not set"),
        (["evaluate"], "--workdir is not set"),
        (["report"], "--workdir is not set"),
        (["report", "--workdir=gs://bucket/run"], "gs://bucket/run is in a bucket"),
        (["demo", TABLE, "--workdir={new}"], "--config has no part `demo`; give configs/demo.py"),
        (["demo", DEMO, "--base=/nowhere", "--workdir={new}"], "/nowhere has no tokenizer"),
        (["demo", DEMO, "--config.demo.tasks=('moor',)", "--workdir={new}"], "did you mean 'mor'?"),
        (["predict", "--workdir=x"], "--input is not set"),
        (["predict", "--workdir=x", "--input=x.csv"], "--output is not set"),
        (["evaluate", "--workdir=/nowhere/at/all"], "/nowhere/at/all has no config.json"),
        (["report", "--workdir=/nowhere/at/all"], "no evaluated run under /nowhere/at/all"),
        (["train", TABLE, "--workdir=x"], "config.base is not set"),
        (["prepare", TABLE, "--config.path=/nowhere.csv", "--workdir={new}"], "/nowhere.csv: no such file"),
        (["prepare", TABLE, "--workdir={new}"], "datasets.notes.tables.table.path: not set"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, refused, arguments, message):
    monkeypatch.chdir(ROOT)
    assert message in refused(*[argument.format(new=tmp_path / "new") for argument in arguments])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "--config cannot be read: SyntaxError"),
        ("import nowhere_at_all", "--config cannot be read: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def get_config():\n    return open('/nowhere/at/all')", "--config cannot be read: OSError"),
        ("def get_config():\n    return 3", "--config: get_config does not return a config"),
    ],
)
def test_a_config_file_that_is_wrong(tmp_path, refused, text, message):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    assert message in refused("train", f"--config={path}", "--workdir=x")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.length=1", "config.data.length is 1; it must be 2 or more"),
        ("epochs=0", "config.epochs is 0; it must be 1 or more"),
        ("loss_chunk=0", "config.loss_chunk is 0; it must be 1 or more"),
        ("batch_size=0", "config.batch_size is 0"),
        ("select=bets", "config.select: no 'bets'; did you mean 'best'?"),
        ("remat=sav_qkv", "config.remat: no policy 'sav_qkv'; did you mean 'save_qkv'?"),
        ("decay=linaer", "config.decay: no 'linaer'; did you mean 'linear'?"),
        ("dtype=float16", "config.dtype is 'float16'"),
        ("data.long_notes=trunc", "config.data.long_notes is 'trunc'"),
        ("data.name=outcom", "dataset 'outcom' is not prepared; did you mean 'outcome'?"),
        ("mesh.fsdp=7", "config.mesh: "),
        ("adapters.clinical.rank=0", "config.adapters.clinical.rank is 0"),
        ("adapters.clinical.dropout=1.0", "config.adapters.clinical.dropout is 1.0"),
        (
            "adapters.clinical.targets=('q_prj',)",
            "targets: 'q_prj' matches no layer; valid are q_proj, k_proj, v_proj, o_proj, gate_proj",
        ),
        ("active=clincal", "config.active: no adapter 'clincal' in config.adapters; did you mean 'clinical'?"),
        ("trainable=clincal", "config.trainable: 'clincal' matches no partition; did you mean 'adapter/clinical'?"),
        ("trainable=head", "config.trainable: 'head' matches no partition"),
        ("base=/nowhere", "config.base: no /nowhere/config.json"),
    ],
)
def test_a_field_with_a_wrong_value(small, tmp_path, refused, flag, message):
    line = refused("train", *small.flags("clinical"), f"--config.{flag}", f"--workdir={tmp_path / 'run'}")
    assert message in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_that_is_a_file(small, refused):
    assert f"{small.notes}: " in refused("prepare", *small.flags("clinical"), f"--workdir={small.notes}")


def test_base_is_short_for_config_base():
    assert parse(cli.VERBS["train"], ["train", TABLE, "--base=there", "--workdir=x"]).config.base == "there"


def test_several_names_make_a_tuple():
    config = parse(cli.VERBS["train"], ["train", TABLE, "--config.trainable=clinical,head", "--workdir=x"]).config
    assert config.trainable == ("clinical", "head")


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "report", dataclasses.replace(cli.VERBS["report"], run=interrupted))
    assert cli.main(["jaxlora", "report", "--workdir=x"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def broken(_):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "report", dataclasses.replace(cli.VERBS["report"], run=broken))
    with pytest.raises(ZeroDivisionError):
        cli.main(["jaxlora", "report", "--workdir=x"])


def test_evaluate_prints_the_metrics(trained, capsys):
    assert trained.run("evaluate", f"--workdir={trained.downstream}") == 0
    saved = json.loads((trained.downstream / "metrics-test.json").read_text())
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert set(printed) == set(saved) and float(printed["auroc"]) == pytest.approx(saved["auroc"], abs=1e-4)


def test_parse_names_a_field_of_a_dataset():
    with pytest.raises(UserError, match="--config.datasets.outcome.knd: no such field; did you mean 'kind'"):
        parse(cli.VERBS["prepare"], ["prepare", TABLE, "--config.datasets.outcome.knd=binary"])
