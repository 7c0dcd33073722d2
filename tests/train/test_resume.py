"""A run that was killed and started again ends in the same bits; one that diverges stops and keeps what was good."""

import errno
import json
import os
import re
import signal
import subprocess

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora import pipeline
from jaxlora.eval.features import Features
from jaxlora.train import loop
from jaxlora.train import update as train_update
from jaxlora.train.checkpoint import UNSCORED, Checkpoints
from jaxlora.train.logs import RunLog

OF_TIME = "notes_per_second|real_tokens_per_second|padded_tokens_per_second|padding|model_flops_per_second|mfu|hfu"
RATES = {*OF_TIME.split("|"), *(f"seconds/{name}" for name in ("data", "update", "validation", "save"))}


def log_of(workdir):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in RATES} for line in lines]


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def assert_same_end(run, other, stored):
    assert steps_of(run)[-1] == steps_of(other)[-1]
    one, two = stored(run), stored(other)
    for part in ("model", "optimizer"):
        assert one[part] and one[part].keys() == two[part].keys()
        assert [name for name in one[part] if one[part][name].tobytes() != two[part][name].tobytes()] == []
    assert one["data"] == two["data"]


def train_patched(trained, patched, run, patch):
    """Trains in a process of its own, to which `patch` happens; returns its exit status and what it wrote."""
    command = patched(patch, "train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    done = subprocess.run(command, env=trained.environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def lines_of(output):
    """What a process said, without its progress bars."""
    return [line for line in re.split(r"[\r\n]", output) if line.startswith("jaxlora: ")]


def assert_same_run(run, other, stored):
    assert_same_end(run, other, stored)
    assert log_of(run) == log_of(other)


@pytest.mark.slow
def test_a_run_killed_at_random_updates_and_in_a_save_ends_in_the_same_bits(trained, patched, stored, tmp_path):
    run, rng = tmp_path / "run", np.random.default_rng(0)
    for patch in (
        f"at_update({rng.integers(4, 7)}, lambda: send(signal.SIGKILL))",
        "at_save(1, lambda: send(signal.SIGKILL))",
        f"at_update({rng.integers(1, 5)}, lambda: send(signal.SIGKILL))",
    ):
        status, output = train_patched(trained, patched, run, patch)
        assert status == -signal.SIGKILL, output
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert_same_run(run, trained.downstream, stored)


def test_sigterm_saves_and_ends_well_and_the_run_goes_on_in_the_same_bits(trained, patched, stored, tmp_path):
    run, update = tmp_path / "run", int(np.random.default_rng(1).integers(4, 8))
    status, output = train_patched(trained, patched, run, f"at_update({update}, lambda: send(signal.SIGTERM))")
    assert status == 0, output
    said = f"jaxlora: stopped by SIGTERM at update {update}, which is saved; the same command goes on from there"
    assert lines_of(output) == [said]
    assert steps_of(run)[-1] == update
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert_same_run(run, trained.downstream, stored)


@pytest.mark.parametrize("made", ["make_train_step", "make_predict_step"])
def test_a_validation_that_sigterm_left_out_is_made_up_for(trained, stored, tmp_path, sigterm_at, made):
    """The signal comes at an update that is to be validated, or in the middle of its validation."""
    run, module = tmp_path / "run", train_update if made == "make_train_step" else pipeline
    with sigterm_at(module, made, 6 if module is train_update else 3 + 2):  # each validation has three batches
        assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert steps_of(run)[-1] == 6
    assert [line["step"] for line in log_of(run) if "validation/auroc" in line] == [3]
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert_same_run(run, trained.downstream, stored)


def test_the_last_validation_that_sigterm_left_out_adds_its_score_alone(trained, stored, tmp_path, sigterm_at, capfd):
    """The checkpoint is the only one of its update: no moment of the second run may leave none."""
    run, said = tmp_path / "run", "SIGTERM left out the validation of update 14, the last; the same command makes it up"
    command = ("train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    times, capture = [], lambda: capfd.readouterr().err
    for calls in (4 * 3 + 2, 2):  # in the last of five validations, and in the one that makes up for it
        with sigterm_at(pipeline, "make_predict_step", calls):
            assert trained.run(*command) == 0
        assert lines_of(capture()) == [f"jaxlora: {said}"]
        assert score_of(run, 14) == UNSCORED
        times.append(times_of(run / "checkpoints" / "14"))
    assert trained.run(*command) == 0
    times.append(times_of(run / "checkpoints" / "14"))
    assert times[0] == times[1] == times[2]
    assert score_of(run, 14) == score_of(trained.downstream, 14)
    assert_same_run(run, trained.downstream, stored)


def score_of(run, step):
    checkpoints = Checkpoints(run)
    try:
        return checkpoints.metadata(step)["score"]
    finally:
        checkpoints.close()


def times_of(folder):
    """When each file of a checkpoint but its score was written."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "metrics"
    }


def test_sigterm_while_features_are_kept(trained, tmp_path, monkeypatch, capfd):
    real, run = Features.of, tmp_path / "run"

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Features, "of", signalled)
    assert trained.run("train", *trained.flags("frozen"), f"--workdir={run}") == 0
    said = ["jaxlora: stopped by SIGTERM before the first update; the same command begins again"]
    assert lines_of(capfd.readouterr().err) == said
    assert steps_of(run) == []


FULL = """
save = Checkpoints.save

def full(self, *arguments, **named):
    self.wait()
    if self.latest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    save(self, *arguments, **named)

Checkpoints.save = full
"""


def test_a_full_disk_leaves_the_checkpoint_before(trained, patched, stored, tmp_path):
    run = tmp_path / "run"
    status, output = train_patched(trained, patched, run, FULL)
    assert status == 2, output
    assert lines_of(output) == [
        f"jaxlora: {run / 'checkpoints'}: cannot save (File too large); checkpoint 3 is kept: make room there, and the "
        "same command goes on"
    ]
    assert steps_of(run) == [3]
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert_same_run(run, trained.downstream, stored)


def test_an_error_of_something_else_is_not_told_as_a_failed_save(trained, tmp_path, monkeypatch, refused):
    def broken(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(loop, "put_batch", broken)
    line = refused("train", *trained.flags("frozen_downstream"), f"--workdir={tmp_path / 'run'}")
    assert line == "jaxlora: Broken pipe"


@pytest.fixture(scope="module")
def watched(trained, tmp_path_factory):
    """A run that keeps its last three checkpoints, and by checkpoint what was to be saved and what was logged then."""
    run, kept, save = tmp_path_factory.mktemp("watched"), {}, Checkpoints.save

    def copying(self, step, model, *rest, **named):
        parameters = {path: np.array(leaf[...]) for path, leaf in nnx.to_flat_state(model)}
        kept[step] = parameters, [line["step"] for line in log_of(run) if "loss" in line]
        save(self, step, model, *rest, **named)

    flags = [*trained.flags("frozen_downstream"), "--config.keep.last=3", "--config.keep.best=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", copying)
        assert trained.run("train", *flags, f"--workdir={run}") == 0
    return run, kept


def test_training_goes_on_while_a_checkpoint_is_written(watched, stored):
    """What is saved is the state of its update, although the next updates are given its memory."""
    run, kept = watched
    for step in steps_of(run):
        found = stored(run, step)["model"]
        for path, value in kept[step][0].items():
            assert found["/".join(path)].tobytes() == value.tobytes()


def test_as_many_checkpoints_stay_as_the_config_says(watched):
    assert steps_of(watched[0]) == [9, 12, 14]


def test_the_log_is_on_the_disk_before_the_checkpoint(watched):
    assert {step: logged for step, (_, logged) in watched[1].items()} == {
        step: list(range(1, step + 1)) for step in (3, 6, 9, 12, 14)
    }


def test_a_run_interrupted_between_checkpoints_ends_in_the_same_bits(trained, stored, tmp_path, around_calls):
    run = tmp_path / "run"
    with around_calls(train_update, "make_train_step", interrupted_at(8)):
        assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 130
    assert steps_of(run)[-1] == 6 and steps_of(trained.downstream)[-1] > 7
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert_same_run(run, trained.downstream, stored)


def interrupted_at(update):
    """A run in which Ctrl-C comes right before an update."""

    def around(number, call):
        if number == update:
            raise KeyboardInterrupt
        return call()

    return around


def test_what_was_logged_after_the_checkpoint_is_dropped(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    log = RunLog(tmp_path, 2)
    log.write(3, {"loss": 2.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in log_of(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (1, "is nan at update 2; no checkpoint was made before: lower config.learning_rate or set config.clip"),
        (3, "validation score is nan at update 3; no checkpoint was made before"),
    ],
)
def test_divergence_names_the_update(trained, tmp_path, around_calls, refused, update, message):
    run = tmp_path / "run"
    with around_calls(train_update, "make_train_step", poisoned_at(update)):
        assert message in refused("train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    assert steps_of(run) == []


def test_divergence_keeps_the_last_good_checkpoint(trained, tmp_path, around_calls, refused):
    run = tmp_path / "run"
    with around_calls(train_update, "make_train_step", poisoned_at(5)):
        line = refused("train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    assert "is nan at update 6; checkpoint 3 is kept" in line
    assert steps_of(run) == [3]
    assert trained.run("evaluate", f"--workdir={run}") == 0
    logits = np.load(run / "predictions-test.npz")["logits"]
    assert logits.size and np.isfinite(logits).all()


def poisoned_at(update):
    """A run in which every parameter is NaN at the end of an update."""

    def around(number, call):
        state, metrics = call()
        if number == update:
            state = state._replace(params=jax.tree.map(lambda x: x * np.float32("nan"), state.params))
        return state, metrics

    return around
