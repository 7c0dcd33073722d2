"""A file appears whole or not at all."""

import os

import pytest

from jaxlora import files


def test_write_makes_a_private_file(tmp_path):
    files.write(tmp_path / "a" / "b.txt", "x")
    assert (tmp_path / "a" / "b.txt").read_text() == "x"
    assert (tmp_path / "a" / "b.txt").stat().st_mode & 0o777 == 0o600


def test_a_failing_write_keeps_the_previous_file(tmp_path, monkeypatch):
    files.write(tmp_path / "b.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        files.write(tmp_path / "b.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"] and (tmp_path / "b.txt").read_text() == "old"
