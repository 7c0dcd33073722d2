"""The benchmark of the bootstrap, tiny."""

import json

from benchmarks import bootstrap


def test_prints_time_memory_and_intervals(capsys):
    bootstrap.main(["--notes", "80", "--labels", "5", "--resamples", "20", "--kind", "bca"])
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == 80 and found["patients"] < 80 and 0 < found["positives"] <= 80 * 5
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0 and found["peak_gib"] > 0
    for low, high in found["intervals"].values():
        assert 0 < low < high < 1
