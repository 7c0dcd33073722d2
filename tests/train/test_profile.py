"""A trace of a few updates, and what it must not have."""

import gzip
import re

from jaxlora.train import profile
from jaxlora.train.profile import FIRST, LAST, Profile


def test_train_traces_a_few_updates_and_says_how_fast_it_was(small, tmp_path, capfd):
    run = tmp_path / "run"
    flags = [*small.flags("clinical"), "--config.evaluations=1", "--config.epochs=1"]
    assert small.run("train", *flags, f"--workdir={run}", "--profile") == 0
    out = capfd.readouterr().out
    assert f"updates {FIRST} to {LAST} are traced in {run / 'profile'}" in out
    rate = r"[\d,]+ real tokens/s \(padding [\d.]+%\), MFU [\d.]+%, HFU [\d.]+% of [\d.]+ TFLOP/s \(measured\)"
    assert re.search(rate + r", data wait [\d.]+%, validation [\d.]+%, save [\d.]+%\n", out)

    files = [path for path in (run / "profile").rglob("*") if path.is_file()]
    found = b"".join(gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in files)
    assert {path.suffix for path in files} >= {".pb"} and found.count(b"jit_step") > 0
    assert not [word for word in small.sentinels if word.encode() in found]
    assert not [path for path in files if path.stat().st_mode & 0o077]


def test_the_trace_is_of_whole_updates_after_the_first_ones(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda folder, **_: calls.append((folder, update)))
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: calls.append(update))
    tracer = Profile(str(tmp_path), 9)
    for update in range(1, 10):
        tracer.at(update, None)
    tracer.close()
    assert calls == [(str(tmp_path / "profile"), FIRST), LAST + 1]


def test_a_run_that_is_too_short_is_refused(small, tmp_path, refused):
    flags = [*small.flags("clinical"), "--config.epochs=1", "--config.batch_size=16"]
    line = refused("train", *flags, f"--workdir={tmp_path / 'run'}", "--profile")
    assert re.search(r"--profile: the run has \d updates to go, and 5 are needed", line)
