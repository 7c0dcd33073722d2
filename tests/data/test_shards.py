"""Shards come out the same however many processes write them and however often they are stopped."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxlora.data import builders, shards
from jaxlora.data.builders import Work
from jaxlora.data.examples import SPLITS, Example, Task
from jaxlora.errors import UserError


def made(count, text="note "):
    return [Example(f"{i:016x}", f"{i // 2:016x}", f"{text}{i}", None, SPLITS[i % 3]) for i in range(count)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shortened(example):
    """Leaves out every seventh example and cuts the others, as a finish may."""
    number = int(example.id, 16)
    return "unlucky" if number % 7 == 0 else Example(example.id, "p", example.text[:9], None, example.split)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 1000)


def test_a_chunk_is_a_shard_of_every_split_it_has(tmp_path, small_chunks):
    written = shards.write(tmp_path, "lm", made(300))
    assert set(written.lengths) == set(SPLITS)
    assert {split: sum(lengths) for split, lengths in written.lengths.items()} == dict.fromkeys(SPLITS, 100)
    for split, lengths in written.lengths.items():
        assert len(list(tmp_path.glob(f"{split}-*"))) == len(lengths) > 1


def test_processes_write_the_same_bytes(tmp_path, small_chunks):
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        written = shards.write(tmp_path / str(workers), "lm", made(300), shortened, workers)
        assert written.dropped == {"unlucky": 43} and sum(map(sum, written.lengths.values())) == 257
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_what_is_done_is_not_done_again(tmp_path, small_chunks):
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole = shards.write(tmp_path / "whole", "lm", made(300))

    def stopping():
        yield from made(300)[:200]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path / "resumed", "lm", stopping())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed").iterdir()}
    assert before
    assert shards.write(tmp_path / "resumed", "lm", made(300)) == whole
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_failure_of_a_process_is_told(tmp_path, small_chunks):
    with pytest.raises(ValueError):
        shards.write(tmp_path, "lm", made(300), _failing, 2)


def _failing(example):
    raise ValueError


def _dying(folder, example):
    """Ends its process as the kernel does one that takes too much memory, once a chunk of the folder is done: the other
    process may still be starting when this one comes to its last example."""
    if int(example.id, 16) == 299:
        while not any(folder.glob("done-*")):
            time.sleep(0.01)
        os._exit(9)
    return example


def test_what_a_killed_process_left_is_gone_on_with(tmp_path, small_chunks):
    folder = tmp_path / ".clinical_notes.a" / "shards"
    with pytest.raises(UserError, match="was killed, perhaps for want of memory; run it again, it goes on"):
        dying = functools.partial(_dying, folder)
        builders.build(tmp_path, Work(Task("a", "lm"), made(300), dying, 2, "one"))
    assert any(folder.glob("done-*"))
    builders.build(tmp_path, Work(Task("a", "lm"), made(300), None, 1, "one"))
    assert sum(builders.load(tmp_path, "a").splits.values()) == 300


KILLED = """
import sys, time
from pathlib import Path
from jaxlora.data import builders, shards
from jaxlora.data.builders import Work
from jaxlora.data.examples import Example, Task
shards.CHUNK = 2000
def examples():
    for i in range(3000):
        if i == 1500 and sys.argv[2] == "slow":
            print("half", file=sys.stderr, flush=True)
            time.sleep(60)
        yield Example(f"{i:016x}", f"{i // 2:016x}", "some text " * 3, None, ("train", "test")[i % 2])
if __name__ == "__main__":
    builders.build(Path(sys.argv[1]), Work(Task("a", "lm"), examples(), source="one"))
"""


def test_a_killed_build_leaves_nothing_visible_and_is_gone_on_with(tmp_path):
    script = tmp_path / "build.py"
    script.write_text(KILLED)
    run = [sys.executable, str(script), str(tmp_path / "out")]
    killed = subprocess.Popen([*run, "slow"], stderr=subprocess.PIPE)
    assert killed.stderr.readline() == b"half\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".clinical_notes.a"]
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / ".clinical_notes.a" / "shards").iterdir()}
    assert len(kept) > 10
    time.sleep(0.01)
    subprocess.run([*run, "quick"], check=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clinical_notes"]
    shard_times = {p.stat().st_mtime_ns for p in (tmp_path / "out" / "clinical_notes" / "a" / "1.0.0").glob("*train*")}
    assert shard_times & set(kept.values()), "the shards of the killed run are used"
    subprocess.run([sys.executable, str(script), str(tmp_path / "fresh"), "quick"], check=True)
    datasets = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "clinical_notes" / "a" / "1.0.0").iterdir()}
        for name in ("out", "fresh")
    ]
    assert datasets[0] == datasets[1]
