"""A run of a table: what is done, and what is not."""

import pytest

from jaxlora import pipeline
from jaxlora.config import default
from jaxlora.errors import UserError
from jaxlora.reproduce.work import SCORE, make


def test_a_run_that_was_stopped_is_not_scored(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "train_run", lambda config, folder: False)
    monkeypatch.setattr(pipeline, "evaluate_run", lambda *_: pytest.fail("it is half trained"))
    config = default()
    config.trainable = ("head",)
    with pytest.raises(UserError, match="^mor: stopped by SIGTERM; the same command goes on from there$"):
        make({"mor": config}, str(tmp_path), 20)
    assert not (tmp_path / "mor" / SCORE).exists()
