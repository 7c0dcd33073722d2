"""Members of a sweep give what their own runs give, whatever they differ in, and go on after a kill."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlora import sweep
from jaxlora.config import default, ia3
from jaxlora.errors import UserError
from jaxlora.train import run_config
from jaxlora.train.checkpoint import Checkpoints

TABLE = Path(__file__).parents[1] / "configs" / "table.py"
CONFIG = """
import importlib.util
from jaxlora.config import dataset, table

def get_config(row):
    found = importlib.util.spec_from_file_location("table", {table!r})
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    config = module.get_config(row)
    columns = dict(id="id", patient="patient", text="text")
    config.datasets.several = dataset("multilabel", table=table(config.get_ref("path"), label="several", **columns))
    config.datasets.death = dataset("binary", table=table(config.get_ref("path"), label="death", **columns))
    return config
"""
# Learning rate, optimizer, adapter, data and its order: whatever a member may have for itself.
MEMBERS = {
    "slow": {"learning_rate": 0.002, "adapters.downstream.alpha": 4.0},
    "wide": {"seed": 3, "adapters.downstream.rank": 12, "adapters.downstream.dropout": 0.2, "clip": 0.1, "epochs": 3},
    "several": {"data.name": "several", "weight_decay": 0.1, "decay": "constant", "warmup": 0.3},
    "death": {"data.name": "death", "b_rate": 4.0, "class_weights": False, "evaluations": 1},
}


@pytest.fixture(scope="module")
def flags(trained, tmp_path_factory):
    """Flags of a config whose dataset has three tasks, prepared."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "config.py").write_text(CONFIG.format(table=str(TABLE)))
    given = [flag for flag in trained.flags("frozen_downstream") if "--config=" not in flag and "dropout" not in flag]
    given = [f"--config={folder / 'config.py'}:frozen_downstream", *given, f"--config.data.dir={folder / 'data'}"]
    assert trained.run("prepare", *given, f"--workdir={folder / 'data'}") == 0
    return given


@pytest.fixture(scope="module")
def swept(trained, flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    assert trained.run("sweep", *flags, sweep_flag(MEMBERS), f"--workdir={folder}") == 0
    return folder


def sweep_flag(members):
    return f"--config.sweep={tuple(members.items())!r}"


def steps_of(workdir):
    return [path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [[line[name] for name in ("loss", "gradient_norm", "learning_rate")] for line in lines if "loss" in line]


def validations(workdir):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    names = [name for name in lines[-1] if name.startswith("validation/")]
    assert names
    return [[line["step"], *(line[name] for name in names)] for line in lines if names[0] in line]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_the_run_that_train_makes_of_it(trained, flags, swept, stored, tmp_path, name):
    own = [f"--config.{field}={value}" for field, value in MEMBERS[name].items()]
    assert trained.run("train", *flags, *own, f"--workdir={tmp_path}") == 0
    alone, member = stored(tmp_path), stored(swept / name)
    np.testing.assert_allclose(losses(swept / name), losses(tmp_path), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(validations(swept / name), validations(tmp_path), atol=1e-5)
    assert alone["model"] and alone["data"] == member["data"]
    for part in ("model", "optimizer"):
        assert alone[part].keys() == member[part].keys()
        for leaf, value in alone[part].items():
            np.testing.assert_allclose(member[part][leaf], value, rtol=1e-4, atol=1e-5, err_msg=leaf)
    assert run_config.read(swept / name).to_dict() == run_config.read(tmp_path).to_dict()
    moved = [leaf for leaf in alone["model"] if "/downstream/" in leaf and leaf.endswith("/b")]
    assert moved and all(np.abs(alone["model"][leaf]).max() > 1e-3 for leaf in moved)


def test_members_that_train_their_heads_alone_keep_the_features_of_their_notes(trained, flags, tmp_path, capsys):
    """One pass of the model for each member, and each is still the run that `train` makes of it."""
    members = {"slow": {"learning_rate": 0.01}, "death": {"data.name": "death", "epochs": 3}}
    frozen = [*(flag.replace(":frozen_downstream", ":frozen") for flag in flags), "--config.learning_rate=0.05"]
    assert trained.run("sweep", *frozen, sweep_flag(members), f"--workdir={tmp_path / 'sweep'}") == 0
    # The training notes of each, and its validation notes.
    assert capsys.readouterr().out.count("the head alone is trained: the features of") == 2 * len(members)
    for name, fields in members.items():
        own, alone = [f"--config.{field}={value}" for field, value in fields.items()], tmp_path / name
        assert trained.run("train", *frozen, *own, f"--workdir={alone}") == 0
        np.testing.assert_allclose(losses(tmp_path / "sweep" / name), losses(alone), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(validations(tmp_path / "sweep" / name), validations(alone), atol=1e-5)


def test_a_sweep_that_was_interrupted_ends_as_one_that_was_not(trained, flags, swept, stored, tmp_path, monkeypatch):
    real, saved = Checkpoints.save, []

    def save(self, step, *arguments, **more):
        saved.append(step)
        if len(saved) == 6:  # some of the members have a checkpoint more than the others
            raise KeyboardInterrupt
        real(self, step, *arguments, **more)

    command = ("sweep", *flags, sweep_flag(MEMBERS), f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        assert trained.run(*command) == 130
    latest = [max(map(int, steps_of(tmp_path / name)), default=0) for name in MEMBERS]
    assert len(set(latest)) > 1
    assert trained.run(*command) == 0
    for name in MEMBERS:
        one, other = stored(tmp_path / name), stored(swept / name)
        assert one["data"] == other["data"]
        for part in ("model", "optimizer"):
            assert [leaf for leaf in one[part] if one[part][leaf].tobytes() != other[part][leaf].tobytes()] == []
        assert losses(tmp_path / name) == losses(swept / name)


def test_sigterm_in_a_validation_saves_the_members_that_have_none_yet(trained, flags, tmp_path, sigterm_at):
    members = {name: MEMBERS[name] for name in ("slow", "death")}
    command = ("sweep", *flags, sweep_flag(members), f"--workdir={tmp_path}")
    with sigterm_at(sweep, "make_predict_step", 1):
        assert trained.run(*command) == 0
    assert [steps_of(tmp_path / name) for name in members] == [["3"], ["3"]]
    assert [len(losses(tmp_path / name)) for name in members] == [3, 3]
    assert trained.run(*command) == 0
    assert [[line[0] for line in validations(tmp_path / name)] for name in members] == [[3, 6, 9, 12, 14], [7, 14]]


def test_a_member_that_diverges_leaves_the_others_alone(trained, flags, swept, stored, refused, tmp_path):
    members = {"slow": MEMBERS["slow"], "wild": {"learning_rate": 1e30}}
    line = refused("sweep", *flags, sweep_flag(members), f"--workdir={tmp_path}")
    assert "wild: " in line and "slow" not in line and "no checkpoint was made before" in line
    np.testing.assert_allclose(losses(tmp_path / "slow"), losses(swept / "slow"), rtol=1e-5)
    assert steps_of(tmp_path / "slow") and not steps_of(tmp_path / "wild")


def test_the_report_names_the_members(trained, swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "sweep")
    for name in ("slow", "several"):
        assert trained.run("evaluate", f"--workdir={folder / name}") == 0
    assert trained.run("report", f"--workdir={folder}") == 0
    tasks = json.loads((folder / "report.json").read_text())["tasks"]
    row = "+ Clinical (frozen) + Downstream"
    assert {task: list(rows) for task, rows in tasks.items()} == {
        "outcome": [f"{row}, slow"],
        "several": [f"{row}, several"],
    }


def test_a_run_goes_on_alone_as_together_whichever_began_it(trained, flags, swept, tmp_path):
    members = {name: MEMBERS[name] for name in ("slow", "death")}
    own = [f"--config.{field}={value}" for field, value in MEMBERS["slow"].items()]

    def without_last(run):
        shutil.rmtree(run / "checkpoints" / max(steps_of(run), key=int))
        return run

    alone = without_last(shutil.copytree(swept / "slow", tmp_path / "alone"))
    assert trained.run("train", *flags, *own, f"--workdir={alone}") == 0
    assert steps_of(alone) == steps_of(swept / "slow")
    np.testing.assert_allclose(losses(alone), losses(swept / "slow"), rtol=1e-5, atol=1e-6)
    without_last(shutil.copytree(alone, tmp_path / "sweep" / "slow"))
    assert trained.run("sweep", *flags, sweep_flag(members), f"--workdir={tmp_path / 'sweep'}") == 0
    for name in members:
        np.testing.assert_allclose(losses(tmp_path / "sweep" / name), losses(swept / name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ((), "config.sweep is empty"),
        (("a", {}), "config.sweep: not pairs of a name and fields"),
        ((("../a", {}),), "config.sweep: '../a' is no name of a folder"),
        ((("a", {}), ("a", {})), "config.sweep: two members are named 'a'"),
        ((("a", {"batch_size": 2}),), "config.sweep: 'a' changes batch_size, which all members share"),
        (
            (("a", {"adapters.clincal.rank": 2}),),
            "'a' changes adapters.clincal.rank, but there is no adapter 'clincal'",
        ),
        (
            (("a", {"learning_rate": "fast"}),),
            "config.sweep: 'a' gives learning_rate the value 'fast', of another type",
        ),
        ((("a", {}), ("b", {"data.name": "notes"})), "data.name of 'b' is of kind 'lm' with 0 labels, that of 'a'"),
    ],
)
def test_what_cannot_be_trained_together(flags, refused, tmp_path, sweep, message):
    assert message in refused("sweep", *flags, f"--config.sweep={sweep!r}", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_the_base_is_not_trained_by_several(flags, refused, tmp_path):
    line = refused("sweep", *flags, sweep_flag(MEMBERS), "--config.trainable=base,head", f"--workdir={tmp_path}")
    assert "config.trainable: the members of a sweep share one frozen base" in line


def test_adapters_of_other_techniques_are_trained_alone():
    config = default()
    config.adapters.clinical, config.sweep = ia3(), (("a", {}), ("b", {}))
    with pytest.raises(UserError, match="config.adapters.clinical is of technique 'ia3'; the members of a sweep"):
        sweep.member_configs(config)
