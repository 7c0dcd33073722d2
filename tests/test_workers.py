"""Jobs that are shared by two processes."""

import os
import subprocess
import sys
import time

import pytest

from jaxlora import workers

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")


def where(number):
    if number == 13:
        raise ValueError("thirteen")
    print("what a worker prints reaches nobody")
    return number, os.getpid(), tuple(sorted(os.sched_getaffinity(0)))


def test_every_job_runs_once_on_cores_of_its_process_alone(capfd):
    found = dict(workers.run_all(where, {f"job {number}": (number,) for number in range(6)}))
    assert {name: result[0] for name, result in found.items()} == {f"job {number}": number for number in range(6)}
    cores = {process: set(of) for _, process, of in found.values()}
    if len(os.sched_getaffinity(0)) > 1:
        assert os.getpid() not in cores and len(cores) <= 2
    if len(cores) == 2:
        assert not set.intersection(*cores.values())
    assert "reaches nobody" not in capfd.readouterr().out


def write(path, seconds):
    if path is None:
        raise ValueError("thirteen")
    time.sleep(seconds)
    path.touch()


def test_the_failure_of_a_job_is_raised_and_no_other_begins(tmp_path):
    jobs = {"unlucky": (None, 0)} | {f"job {number}": (tmp_path / str(number), 0.5) for number in range(12)}
    with pytest.raises(ValueError, match="thirteen"):
        list(workers.run_all(write, jobs))
    assert len(list(tmp_path.iterdir())) < 12


def sleep(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(60)


KILLED = """
import sys
from pathlib import Path
from jaxlora import workers
from test_workers import sleep

if __name__ == "__main__":
    list(workers.run_all(sleep, {number: (Path(sys.argv[1]),) for number in range(4)}))
"""


def test_the_workers_of_a_process_that_is_stopped_end_too(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("jobs are not shared on one core")
    script, begun = tmp_path / "killed.py", tmp_path / "begun"
    script.write_text(KILLED)
    begun.mkdir()
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    parent = subprocess.Popen([sys.executable, script, begun], env=environment, stderr=subprocess.DEVNULL)
    assert comes_true(lambda: len(list(begun.iterdir())) == 2)
    parent.terminate()
    parent.wait()
    assert comes_true(lambda: not any(alive(int(worker.name)) for worker in begun.iterdir()))


def comes_true(happened, seconds=30):
    """Whether something happens in time."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()


def alive(process):
    """Whether a process is there and is more than an entry that its new parent has not looked at."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
