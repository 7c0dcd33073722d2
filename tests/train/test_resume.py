"""A run that was killed and started again ends in the same bits; one that diverges stops and keeps what was good."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxlora.train import loop
from jaxlora.train.checkpoint import Checkpoints
from jaxlora.train.logs import RunLog

RATES = {"real_tokens_per_second", "padded_tokens_per_second", "padding"}  # of wall time


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


def test_a_killed_and_resumed_run_ends_in_the_same_bits(trained, stored, tmp_path):
    run, output = tmp_path / "run", tmp_path / "output"
    command = [sys.executable, "-m", "jaxlora.cli", "train", *trained.flags("frozen_downstream"), f"--workdir={run}"]
    with output.open("w") as file:
        process = subprocess.Popen(command, env=trained.environment(), stdout=file, stderr=file)
        try:
            deadline = time.monotonic() + 180
            while not steps_of(run) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, output.read_text()
    assert 0 < steps_of(run)[-1] < steps_of(trained.downstream)[-1]

    subprocess.run(command, env=trained.environment(), check=True, capture_output=True)
    assert_same_end(run, trained.downstream, stored)
    assert log_of(run) == log_of(trained.downstream)
    losses = [line["step"] for line in log_of(run) if "loss" in line]
    assert losses == list(range(1, losses[-1] + 1)) and losses[-1] == steps_of(run)[-1]


def test_a_run_interrupted_between_checkpoints_ends_in_the_same_bits(trained, stored, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 130
    assert steps_of(run)[-1] == 6 and steps_of(trained.downstream)[-1] > 7
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 0
    assert_same_end(run, trained.downstream, stored)
    assert log_of(run) == log_of(trained.downstream)


def interrupt_after(patch, updates):
    """Makes the run stop as by Ctrl-C when it has made so many updates."""
    real = loop.make_train_step

    def make(*arguments):
        step, made = real(*arguments), []

        def interrupted(*values):
            if len(made) == updates:
                raise KeyboardInterrupt
            made.append(True)
            return step(*values)

        return interrupted

    patch.setattr(loop, "make_train_step", make)


def test_the_log_is_on_the_disk_before_the_checkpoint(trained, tmp_path, monkeypatch):
    run, save, seen = tmp_path / "run", Checkpoints.save, []

    def checked(self, step, *arguments):
        seen.append((step, [line["step"] for line in log_of(run) if "loss" in line]))
        if len(seen) == 2:
            raise KeyboardInterrupt
        save(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", checked)
    assert trained.run("train", *trained.flags("frozen_downstream"), f"--workdir={run}") == 130
    assert [step for step, _ in seen] == [3, 6]
    for step, logged in seen:
        assert logged == list(range(1, step + 1))


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
def test_divergence_names_the_update(trained, tmp_path, monkeypatch, refused, update, message):
    run = tmp_path / "run"
    poison_update(monkeypatch, update)
    assert message in refused("train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    assert steps_of(run) == []


def test_divergence_keeps_the_last_good_checkpoint(trained, tmp_path, monkeypatch, refused):
    run = tmp_path / "run"
    poison_update(monkeypatch, 5)
    line = refused("train", *trained.flags("frozen_downstream"), f"--workdir={run}")
    assert "is nan at update 6; checkpoint 3 is kept" in line
    assert steps_of(run) == [3]
    assert trained.run("evaluate", f"--workdir={run}") == 0
    logits = np.load(run / "predictions-test.npz")["logits"]
    assert logits.size and np.isfinite(logits).all()


def poison_update(patch, number):
    """Makes every parameter NaN at the end of an update."""
    real = loop.make_train_step

    def make(*arguments):
        step, made = real(*arguments), []

        def poisoned(*values):
            state, metrics = step(*values)
            made.append(True)
            if len(made) == number:
                state = state._replace(params=jax.tree.map(lambda x: x * np.float32("nan"), state.params))
            return state, metrics

        return poisoned

    patch.setattr(loop, "make_train_step", make)
