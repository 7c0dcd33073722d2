"""What a checkpoint holds, what goes on from it, and what is refused."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlora.train.checkpoint import Checkpoints

# Orbax leaves the tasks unfinished that were reading a damaged file.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


def copy_run(workdir, target, **fields):
    """Copies a run, with other fields in its config."""
    shutil.copytree(workdir, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields, indent=1) + "\n")
    return target


def copy_base(base, target, tensor="model.norm.weight", factor=1.5):
    """Copies a base, with another weight in it."""
    shutil.copytree(base, target)
    tensors = load_file(target / "model.safetensors")
    tensors[tensor] = tensors[tensor] * np.float32(factor)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def best(workdir):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.choose("best")
    finally:
        checkpoints.close()


def test_a_checkpoint_holds_adapters_head_optimizer_and_iterator(trained, stored):
    found = stored(trained.downstream)
    assert set(found) == {"model", "optimizer", "data"}
    parts = {"clinical", "downstream", "head"}
    assert {part for part in parts for name in found["model"] if part in name} == parts
    assert not [name for name in found["model"] if not any(part in name for part in parts)]
    moments = [name for name in found["optimizer"] if "/mu/" in name]
    assert moments and not [name for name in found["optimizer"] if "clinical" in name]
    assert {name for name in found["model"] if "clinical" not in name} == {name.split("/mu/")[1] for name in moments}
    assert found["data"]["next_index"] > 0


def test_its_metadata_say_what_it_belongs_to(trained):
    checkpoints = Checkpoints(trained.downstream)
    try:
        found = checkpoints.metadata(checkpoints.latest)
    finally:
        checkpoints.close()
    assert set(found) == {"base", "tokenizer", "adapters", "kind", "labels", "training set", "score"}
    assert (found["kind"], found["labels"]) == ("multiclass", ["fair", "good", "poor"])
    assert (found["adapters"]["clinical"]["rank"], found["adapters"]["downstream"]["rank"]) == (16, 8)


def test_the_latest_two_and_the_best_are_kept(trained):
    steps = sorted(int(path.name) for path in (trained.downstream / "checkpoints").iterdir())
    log = [json.loads(line) for line in (trained.downstream / "log.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["validation/auroc"] for line in log if "validation/auroc" in line}
    last = sorted(scores)[-2:]
    assert (
        steps == sorted({*last, max(scores, key=lambda step: (scores[step], step))})
        and best(trained.downstream) in steps
    )


def test_step_2_restores_the_clinical_adapter_bit_for_bit(trained, stored):
    one, two = stored(trained.clinical, best(trained.clinical))["model"], stored(trained.downstream)["model"]
    names = [name for name in two if "/clinical/" in name]
    assert names and set(names) == set(one)
    for name in names:
        assert one[name].tobytes() == two[name].tobytes()
    assert any(one[name].any() for name in names if name.endswith("/b"))


def test_step_2_needs_step_1_no_more(trained, tmp_path):
    expected = json.loads((trained.downstream / "metrics-test.json").read_text())
    config = json.loads((trained.downstream / "config.json").read_text())
    config["adapters"]["clinical"]["workdir"] = str(tmp_path / "deleted")
    run = copy_run(trained.downstream, tmp_path / "run", adapters=config["adapters"])
    assert trained.run("evaluate", f"--workdir={run}") == 0
    assert json.loads((run / "metrics-test.json").read_text()) == expected


def test_a_finished_run_is_not_trained_again(trained, tmp_path, monkeypatch):
    run = copy_run(trained.downstream, tmp_path / "run")
    before = contents(run / "checkpoints"), (run / "log.jsonl").read_text()
    monkeypatch.setattr(Checkpoints, "save", lambda *_: pytest.fail("saved again"))
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert (contents(run / "checkpoints"), (run / "log.jsonl").read_text()) == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.learning_rate=0.02", "config.learning_rate = 0.01, not 0.02"),
        ("--config.adapters.downstream.rank=4", "config.adapters.downstream.rank = 8, not 4"),
        ("--config.trainable=head", "config.trainable = ['downstream', 'head'], not ['head']"),
    ],
)
def test_another_config_on_the_same_workdir(trained, refused, flag, message):
    before = contents(trained.downstream)
    line = refused("train", *trained.flags("frozen_downstream"), flag, f"--workdir={trained.downstream}")
    assert message in line and "use a new workdir" in line
    assert contents(trained.downstream) == before


def test_another_base_on_the_same_workdir(trained, tmp_path, refused):
    base = copy_base(trained.base, tmp_path / "base")
    run = copy_run(trained.clinical, tmp_path / "run", base=str(base))
    line = refused("train", *trained.flags("clinical"), f"--config.base={base}", f"--workdir={run}")
    assert "was trained with another base" in line


def test_other_notes_under_the_same_name(trained, tmp_path, refused):
    """A dataset that was prepared again with other notes and the same labels."""
    data, rows = tmp_path / "data", trained.notes.read_text().splitlines(keepends=True)
    (tmp_path / "notes.csv").write_text("".join(rows[:-20]))
    flags = [f for f in trained.flags("clinical") if not f.startswith(("--config.path", "--config.data.dir"))]
    assert trained.run("prepare", *flags, f"--config.path={tmp_path / 'notes.csv'}", f"--workdir={data}") == 0
    run = copy_run(
        trained.clinical,
        tmp_path / "run",
        data=json.loads((trained.clinical / "config.json").read_text())["data"] | {"dir": str(data)},
    )
    line = refused("train", *trained.flags("clinical"), f"--config.data.dir={data}", f"--workdir={run}")
    assert "was trained with another training set" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.clinical={folder}/data"], "config.adapters.clinical.workdir: {folder}/data has no checkpoints"),
        (["--config.clinical={folder}/lora"], "config.adapters.clinical.workdir: {folder}/lora has no checkpoints"),
        (["--config.adapters.downstream.workdir={folder}/clinical"], "has no adapter 'downstream', but clinical"),
        (
            ["--config.adapters.clinical.rank=8"],
            "config.adapters.clinical differs from what {folder}/clinical was trained with; give adapter(rank=16, "
            "alpha=32.0)",
        ),
        (["--config.adapters.clinical.alpha=8"], "give adapter(rank=16, alpha=32.0)"),
        (["--config.adapters.clinical.dora=True"], "give adapter(rank=16, alpha=32.0)"),
    ],
)
def test_an_adapter_that_does_not_fit(trained, tmp_path, refused, flags, message):
    flags = [flag.format(folder=trained.folder) for flag in flags]
    line = refused("train", *trained.flags("frozen_downstream"), *flags, f"--workdir={tmp_path / 'run'}")
    assert message.format(folder=trained.folder) in line
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base(trained, tmp_path, refused):
    base = copy_base(trained.base, tmp_path / "base")
    flags = [*trained.flags("frozen_downstream"), f"--config.base={base}"]
    line = refused("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert f"config.adapters.clinical.workdir: {trained.clinical} was trained on another base than config.base" in line


def damage(run, step, part=""):
    """Cuts the largest file of a checkpoint, or of a part of it, in half."""
    whole = run / "checkpoints" / str(step) / part
    paths = [whole] if whole.is_file() else [path for path in whole.rglob("*") if path.is_file()]
    path = max(paths, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("part", ["model", "_CHECKPOINT_METADATA", "metrics/metrics"])
def test_a_truncated_checkpoint_is_not_evaluated(trained, tmp_path, refused, part):
    run = copy_run(trained.downstream, tmp_path / "run")
    damage(run, best(run), part)
    before = contents(run)
    line = refused("evaluate", f"--workdir={run}")
    assert f"{run / 'checkpoints'}: checkpoint {best(trained.downstream)}" in line
    assert "damaged" in line and "delete that folder" in line
    assert contents(run) == before


@pytest.mark.parametrize(
    ("part", "why"),
    [("model", "cannot be restored"), ("_CHECKPOINT_METADATA", "is damaged"), ("metrics/metrics", "has no score")],
)
def test_training_goes_on_from_before_a_truncated_checkpoint(trained, stored, tmp_path, capfd, part, why):
    run = copy_run(trained.downstream, tmp_path / "run")
    before, last = sorted(int(path.name) for path in (run / "checkpoints").iterdir())[-2:]
    damage(run, last, part)
    capfd.readouterr()
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    said = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if line.startswith("jaxlora: ")]
    assert len(said) == 1 and f"checkpoint {last} {why}" in said[0]
    assert said[0].endswith(f"delete {run / 'checkpoints' / f'{last}.damaged'}")
    assert part == "metrics/metrics" or f"going on from {before}" in said[0]
    assert_same_models(stored(run, last), stored(trained.downstream, last))
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, last + 1))


@pytest.mark.parametrize("part", ["model", "metrics/metrics"])
def test_no_checkpoint_left_that_can_be_read(trained, tmp_path, refused, part):
    run = copy_run(trained.downstream, tmp_path / "run")
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    for step in steps:
        damage(run, step, part)
    before = contents(run)
    line = refused("train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    assert f"{run / 'checkpoints'}: checkpoint {steps[-1]} " in line and line.endswith("delete that folder")
    assert contents(run) == before


def assert_same_models(one, two):
    assert one["model"].keys() == two["model"].keys()
    assert [name for name in one["model"] if one["model"][name].tobytes() != two["model"][name].tobytes()] == []


def test_what_does_not_change_the_result_may_change_in_a_run_that_goes_on(trained, stored, tmp_path):
    run = copy_run(trained.downstream, tmp_path / "run")
    last = max(int(path.name) for path in (run / "checkpoints").iterdir())
    shutil.rmtree(run / "checkpoints" / str(last))
    changed = ["remat=full", "attention.block=128", "loss_chunk=32", "keep.last=1", "keep.best=0"]
    flags = [*trained.flags("frozen_downstream"), *(f"--config.{field}" for field in changed)]
    assert trained.run("train", *flags, f"--workdir={run}") == 0
    assert [int(path.name) for path in (run / "checkpoints").iterdir()] == [last]
    assert json.loads((run / "config.json").read_text())["remat"] == "full"
    found, expected = stored(run, last)["model"], stored(trained.downstream, last)["model"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_a_truncated_checkpoint_of_step_1(trained, tmp_path, refused):
    clinical = copy_run(trained.clinical, tmp_path / "clinical")
    damage(clinical, best(clinical), "model")
    flags = [*trained.flags("frozen_downstream"), f"--config.clinical={clinical}"]
    line = refused("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert f"{clinical / 'checkpoints'}: checkpoint {best(clinical)} cannot be restored" in line


def test_a_run_can_be_read_while_it_saves(trained, tmp_path):
    run = copy_run(trained.downstream, tmp_path / "run")
    saving = run / "checkpoints" / "99.orbax-checkpoint-tmp"
    saving.mkdir()
    Checkpoints(run).close()
    assert saving.exists()
    Checkpoints(run, {"last": 2, "best": 1}).close()
    deadline = time.monotonic() + 30  # it is cleared away in the background
    while saving.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not saving.exists()


def test_a_base_that_changed_before_evaluation(trained, tmp_path, refused):
    base = copy_base(trained.base, tmp_path / "base")
    run = copy_run(trained.downstream, tmp_path / "run", base=str(base))
    assert f"--workdir: {run} was trained with another base" in refused("evaluate", f"--workdir={run}")


def test_a_tokenizer_that_changed_before_evaluation(trained, tmp_path, refused):
    base = tmp_path / "base"
    shutil.copytree(trained.base, base)
    from jaxlora.data.tokens import train_tokenizer

    train_tokenizer(["another text to learn the tokens of"] * 50, base, 300)
    run = copy_run(trained.downstream, tmp_path / "run", base=str(base))
    assert f"--workdir: {run} was trained with another tokenizer" in refused("evaluate", f"--workdir={run}")


def test_a_run_without_checkpoint(trained, tmp_path, refused):
    run = copy_run(trained.downstream, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    assert f"{run} has no checkpoint; train it first" in refused("evaluate", f"--workdir={run}")
