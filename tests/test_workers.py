"""Jobs that are shared by two processes."""

import os
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
