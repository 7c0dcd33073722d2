"""launch/tpu_vm.sh against a fake gcloud that records its calls, and launch/attach.sh for real."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Tests that run in the background ignore Ctrl-C, and a shell cannot trap what it was born ignoring.
HEAR_INTERRUPTS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])
"""
SCRIPTS = [ROOT / "launch/tpu_vm.sh", ROOT / "launch/attach.sh", ROOT / ".ci/run"]
FLAGS = ["--name=clinical", "--zone=us-central1-a", "--type=v5litepod-16"]
COMMAND = ["jaxlora", "train", "--config=configs/mine.py", "--workdir=gs://bucket/clinical"]
ATTACH = "bash jaxlora/launch/attach.sh " + " ".join(COMMAND)

# The TPU is the file $FAKE/tpu with its state in it. Each run of the command takes one line of $FAKE/outcomes: the exit
# status of ssh, and the state the TPU is in afterwards.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >>"$FAKE/calls"
case "$*" in
  *" queued-resources describe "*) [[ -f $FAKE/tpu ]] && echo ACTIVE ;;
  *" describe "*) cat "$FAKE/tpu" 2>/dev/null ;;
  *" create "*)
    [[ -f $FAKE/no_capacity ]] && exit 1
    echo READY >"$FAKE/tpu"
    ;;
  *" delete "*) rm "$FAKE/tpu" ;;
  *" scp "*) cp "$5" "$FAKE/archive.tar.gz" ;;
  *attach.sh*)
    read -r status state <"$FAKE/outcomes"
    sed -i 1d "$FAKE/outcomes"
    [[ $status == hang ]] && sleep 60
    echo "$state" >"$FAKE/tpu"
    exit "$status"
    ;;
esac
"""


class Machine:
    """A checkout with the launcher in it, and a gcloud that is not Google's."""

    def __init__(self, folder: Path):
        self.folder, self.checkout = folder, folder / "checkout"
        (folder / "bin").mkdir()
        (folder / "bin/gcloud").write_text(GCLOUD)
        (folder / "bin/gcloud").chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(folder),
            "POLL_SECONDS": "0",
        }
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        (self.checkout / "config.py").write_text("committed")
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "Test"]):
            subprocess.run(["git", *command], cwd=self.checkout, check=True)

    def start(self, *arguments: str, outcomes: str = "") -> subprocess.Popen:
        (self.folder / "outcomes").write_text(outcomes)
        return subprocess.Popen(
            [sys.executable, "-c", HEAR_INTERRUPTS, "launch/tpu_vm.sh", *arguments],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, outcomes: str = "") -> tuple[int, str, str]:
        process = self.start(*arguments, outcomes=outcomes)
        output, errors = process.communicate(timeout=240)
        return process.returncode, output, errors

    def calls(self, *words: str) -> list[str]:
        """Returns the recorded gcloud calls that contain one of the words, shortened to it."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [word for line in lines for word in words if word in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_shellcheck_passes():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    assert subprocess.run([shellcheck, *SCRIPTS]).returncode == 0


@pytest.mark.parametrize("queued", [False, True])
def test_dry_run_prints_every_command_and_runs_none(machine, queued):
    extra = ["--queued", "--spot", "--project=p"] if queued else []
    status, output, _ = machine.run("--dry-run", *FLAGS, *extra, "--", *COMMAND)
    assert status == 0
    assert machine.calls("gcloud", " ") == []
    archive, create, copy, install, run, delete = output.splitlines()
    assert "git" in archive and "archive" in archive
    if queued:
        assert "queued-resources create clinical --node-id=clinical" in create and "--spot" in create
        assert "--runtime-version=v2-alpha-tpuv5-lite" in create
        assert "queued-resources delete clinical --force" in delete
        assert all("--project=p" in line for line in (create, copy, install, run, delete))
    else:
        assert "tpu-vm create clinical" in create and "--version=v2-alpha-tpuv5-lite" in create
        assert "tpu-vm delete clinical" in delete
    assert all("--worker=all" in line for line in (copy, install, run))
    assert ATTACH in run
    assert all("--zone=us-central1-a" in line for line in (create, copy, install, run, delete))


def test_inputs_are_copied_to_every_host(machine):
    _, without, _ = machine.run("--dry-run", *FLAGS, "--", *COMMAND)
    _, output, _ = machine.run("--dry-run", *FLAGS, "--inputs=gs://bucket/inputs", "--", *COMMAND)
    assert "storage" not in without
    (line,) = [line for line in output.splitlines() if "gs://bucket/inputs" in line]
    assert "--worker=all" in line and "gcloud storage rsync --recursive" in line


def test_dry_run_can_be_pasted(machine):
    odd = "--config.note=it's 1 $HOME"
    _, output, _ = machine.run("--dry-run", *FLAGS, "--", *COMMAND, odd)
    line = next(line for line in output.splitlines() if "attach.sh" in line)
    # The local shell takes the line apart, then the one on the TPU its --command.
    script = (
        f'gcloud() {{ printf "%s\\n" "$@" | grep ^--command=; }}; command=$({line}); eval "set -- ${{command#*=}}"; '
    )
    words = subprocess.run(["bash", "-c", script + 'printf "%s\\n" "$@"'], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == ["bash", "jaxlora/launch/attach.sh", *COMMAND, odd]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*FLAGS[1:], "--", *COMMAND], "--name"),
        ([FLAGS[0], FLAGS[2], "--", *COMMAND], "--zone"),
        ([*FLAGS[:2], "--", *COMMAND], "--type"),
        ([*FLAGS, "--color=red", "--", *COMMAND], "--color"),
        ([*FLAGS, "--name", "x", "--", *COMMAND], "--name"),
        ([*FLAGS], "missing command"),
        ([*FLAGS, "--", "python", "train.py"], "missing command"),
        ([*FLAGS[:2], "--type=v99-8", "--", *COMMAND], "--version"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(machine, arguments, named):
    status, output, errors = machine.run(*arguments)
    assert status == 2
    assert output == "" and len(errors.splitlines()) == 1 and named in errors
    assert machine.calls(" ") == []


def test_a_local_workdir_is_warned_of(machine):
    _, _, quiet = machine.run("--dry-run", *FLAGS, "--", *COMMAND)
    _, _, errors = machine.run("--dry-run", *FLAGS, "--", "jaxlora", "train", "--workdir=runs/a")
    assert "warning" not in quiet
    assert len([line for line in errors.splitlines() if "warning" in line and "gs://" in line]) == 1


STEPS = (" create ", " scp ", "attach.sh", " delete ")


@pytest.mark.parametrize("queued", [False, True])
def test_a_preempted_tpu_is_replaced_and_the_command_run_again(machine, queued):
    extra = ["--queued"] if queued else []
    status, _, _ = machine.run(*FLAGS, "--spot", *extra, "--", *COMMAND, outcomes="255 PREEMPTED\n0 READY\n")
    assert status == 0
    assert machine.calls(*STEPS) == [*STEPS, *STEPS]
    assert machine.calls(ATTACH) == [ATTACH] * 2
    assert not (machine.folder / "tpu").exists()


def test_a_slice_that_lost_one_host_is_replaced(machine):
    """The command fails on the hosts that are left, before the slice says that it is preempted."""
    status, _, _ = machine.run(*FLAGS, "--", *COMMAND, outcomes="3 PREEMPTED\n0 READY\n")
    assert status == 0
    assert machine.calls(*STEPS) == [*STEPS, *STEPS]


def test_a_failure_of_the_command_is_reported_and_the_tpu_deleted(machine):
    status, _, errors = machine.run(*FLAGS, "--", *COMMAND, outcomes="3 READY\n")
    assert status == 1
    assert "failed" in errors
    assert machine.calls(*STEPS) == [*STEPS]
    assert not (machine.folder / "tpu").exists()


def test_a_broken_connection_attaches_again(machine):
    status, _, _ = machine.run(*FLAGS, "--", *COMMAND, outcomes="255 READY\n0 READY\n")
    assert status == 0
    assert machine.calls(*STEPS) == [" create ", " scp ", "attach.sh", "attach.sh", " delete "]


def test_no_capacity_is_tried_a_bounded_number_of_times(machine):
    (machine.folder / "no_capacity").touch()
    status, _, errors = machine.run(*FLAGS, "--", *COMMAND)
    assert status == 1
    assert "gave up" in errors
    assert len(machine.calls(" create ")) == 10


def test_keep_keeps(machine):
    status, _, errors = machine.run(*FLAGS, "--keep", "--", *COMMAND, outcomes="0 READY\n")
    assert status == 0
    assert "kept" in errors
    assert (machine.folder / "tpu").exists()


def test_a_tpu_that_exists_is_left_alone(machine):
    (machine.folder / "tpu").write_text("READY\n")
    status, _, errors = machine.run(*FLAGS, "--", *COMMAND)
    assert status == 1
    assert "exists" in errors
    assert machine.calls(" create ", " delete ") == []


def test_an_interrupt_deletes_the_tpu(machine):
    process = machine.start(*FLAGS, "--", *COMMAND, outcomes="hang\n")
    while not machine.calls("attach.sh"):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode == 130
    assert not (machine.folder / "tpu").exists()


def test_tracked_files_travel_with_their_changes_and_nothing_else(machine):
    (machine.checkout / "config.py").write_text("changed")
    (machine.checkout / "notes.csv").write_text("a note")
    status, _, _ = machine.run(*FLAGS, "--", *COMMAND, outcomes="0 READY\n")
    assert status == 0
    with tarfile.open(machine.folder / "archive.tar.gz") as archive:
        assert "launch/attach.sh" in archive.getnames()
        assert "notes.csv" not in archive.getnames()
        assert archive.extractfile("config.py").read() == b"changed"


@pytest.fixture
def attach(tmp_path: Path) -> list[str]:
    if sys.platform != "linux":
        pytest.skip("attach.sh runs on the TPU VM, which is Linux")
    shutil.copytree(ROOT / "launch", tmp_path / "jaxlora/launch")
    return ["bash", str(tmp_path / "jaxlora/launch/attach.sh")]


def test_attach_runs_a_command_once(attach, tmp_path):
    command = [*attach, "bash", "-c", f"echo hello | tee -a {tmp_path}/ran"]
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert (result.returncode, result.stdout) == (0, "hello\n")
    assert (tmp_path / "ran").read_text() == "hello\n"


def test_attach_tells_a_failure_from_a_broken_connection(attach):
    assert subprocess.run([*attach, "bash", "-c", "exit 255"], capture_output=True, timeout=240).returncode == 3


def test_attach_survives_a_broken_connection(attach, tmp_path):
    wait = f"for _ in {{1..300}}; do [[ -f {tmp_path}/go ]] && break; sleep 0.1; done"
    script = f"echo start >>{tmp_path}/ran; {wait}; echo end"
    command = [*attach, "bash", "-c", script]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((tmp_path / "ran").exists() and (tmp_path / "jaxlora/.job/pid").exists()):
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0
    assert result.stdout.endswith("end\n")
    assert (tmp_path / "ran").read_text() == "start\n"
