"""Several hosts on this machine: what the launcher does with its processes, and that they train what one would."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
NUMBER = "os.environ['JAX_PROCESS_ID']"
# Each host has two of the four rows of a batch.
OWN_ROWS = f"""
from jaxlora import pipeline
own_rows = pipeline.own_rows
def checked(*arguments):
    rows = own_rows(*arguments)
    assert rows == [[0, 1], [2, 3]][int({NUMBER})], rows
    return rows
pipeline.own_rows = checked
"""
# Every file goes through `files.write`, the board through its writer; Orbax divides the work itself.
ONE_WRITES = f"""
if {NUMBER} == "1":
    def refuse(*_): raise AssertionError("the second host writes a file")
    from jaxlora import files
    import tensorboardX
    files.write = tensorboardX.SummaryWriter = refuse
"""


def pod(command, hosts=2, devices=2, **more):
    launcher = [sys.executable, "-m", "launch.local_pod", f"--hosts={hosts}", f"--devices={devices}", "--"]
    return subprocess.Popen([*launcher, *command], cwd=ROOT, text=True, **more)


def run(command, hosts=2, devices=2, env=None):
    """Runs a command on a pod to its end; returns its status and what it wrote."""
    process = pod(command, hosts, devices, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def python(code):
    return [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]


def test_every_host_is_told_who_it_is(tmp_path):
    fields = "COORDINATOR_ADDRESS NUM_PROCESSES NUM_CPU_DEVICES PLATFORMS".split()
    code = f"open(r'{tmp_path}/' + {NUMBER}, 'w').write(' '.join(os.environ['JAX_' + x] for x in {fields}))"
    assert run(python(code), hosts=3, devices=5) == (0, "")
    found = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert sorted(found) == ["0", "1", "2"]
    assert found["0"] == found["1"] == found["2"] and found["0"][1:] == ["3", "5", "cpu"]
    assert found["0"][0].startswith("localhost:")


def test_the_first_host_is_heard_and_of_the_others_the_one_that_fails():
    status, output = run(python(f"print('from', {NUMBER}); sys.exit(3 if {NUMBER} == '2' else 0)"), hosts=3)
    assert status == 3
    assert sorted(output.splitlines()) == ["from 0", "host 2: from 2"]


def test_the_failure_of_one_ends_the_others():
    started = time.monotonic()
    status, _ = run(python(f"{NUMBER} == '1' and os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(120)"))
    assert status == 128 + signal.SIGKILL
    assert time.monotonic() - started < 60


def test_a_signal_reaches_every_host(tmp_path):
    code = f"""
def leave(*_):
    open(r'{tmp_path}/left-' + {NUMBER}, 'w').close()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
open(r'{tmp_path}/ready-' + {NUMBER}, 'w').close()
time.sleep(120)
"""
    process = pod(python(code))
    while len(list(tmp_path.glob("ready-*"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert len(list(tmp_path.glob("left-*"))) == 2


@pytest.mark.parametrize(("flag", "message"), [("--hosts=0", "must be 1 or more"), ("--devices=x", "invalid int")])
def test_a_pod_that_cannot_be(flag, message):
    done = subprocess.run(
        [sys.executable, "-m", "launch.local_pod", flag, "--", "true"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr


def test_a_command_that_does_not_exist():
    assert run(["no-such-command"]) == (1, "local_pod: no-such-command: no such command\n")


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, lines[-1]["step"] + 1))
    return [line[name] for line in lines for name in ("loss", "validation/auroc") if name in line]


def assert_same(workdir, other, stored):
    np.testing.assert_allclose(losses(workdir), losses(other), rtol=1e-5)
    one, two = stored(workdir), stored(other)
    assert one["data"] == two["data"]
    for name, value in two["model"].items():
        np.testing.assert_allclose(one["model"][name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_two_hosts_train_and_evaluate_as_one(trained, patched, stored, tmp_path):
    workdir = tmp_path / "run"
    for verb, flags in (("train", trained.flags("frozen_downstream")), ("evaluate", [])):
        command = patched(OWN_ROWS + ONE_WRITES, verb, *flags, f"--workdir={workdir}")
        status, output = run(command, env=trained.environment())
        assert status == 0, output
    assert_same(workdir, trained.downstream, stored)
    one, two = (np.load(folder / "predictions-test.npz") for folder in (workdir, trained.downstream))
    assert one["ids"].tolist() == two["ids"].tolist()
    np.testing.assert_allclose(one["logits"], two["logits"], rtol=1e-4, atol=1e-5)
    expected = {"config.json", "log.jsonl", "checkpoints", "tensorboard", "predictions-test.npz", "metrics-test.json"}
    assert {path.name for path in workdir.iterdir()} == expected


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_hosts_and_devices(trained, patched, stored, tmp_path):
    """From eight devices of two hosts, one of which hears SIGTERM, to two devices, to one."""
    workdir, flags = tmp_path / "run", [*trained.flags("frozen_downstream"), f"--workdir={tmp_path / 'run'}"]
    eight = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    signalled = f"if {NUMBER} == '1': at_update(4, lambda: send(signal.SIGTERM))"
    status, output = run(patched(signalled, "train", *flags, *eight), devices=4, env=trained.environment())
    assert status == 0 and "stopped by SIGTERM at update" in output, output
    (stopped,) = {int(path.name) for path in (workdir / "checkpoints").iterdir()} - {3}
    assert stopped in (4, 5)

    two = patched("at_update(3, lambda: send(signal.SIGTERM))", "train", *flags, "--config.mesh.fsdp=2")
    done = subprocess.run(
        two, env=trained.environment() | {"JAX_NUM_CPU_DEVICES": "2"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (workdir / "checkpoints" / str(stopped + 3)).exists()
    assert trained.run("train", *flags) == 0
    assert_same(workdir, trained.downstream, stored)
