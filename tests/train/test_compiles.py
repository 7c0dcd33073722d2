"""A run compiles its step once, and its predictions once, whatever it goes through."""

import pytest

from jaxlora import pipeline, restore
from jaxlora.train import update as train_update


@pytest.fixture
def compiled(monkeypatch):
    """Counts, for each step made, the programs that it was compiled to."""
    made = {"update": [], "predictions": []}

    def recorded(module, name, kind):
        real = getattr(module, name)

        def make(*arguments):
            made[kind].append(real(*arguments))
            return made[kind][-1]

        monkeypatch.setattr(module, name, make)

    recorded(train_update, "make_train_step", "update")
    recorded(pipeline, "make_predict_step", "predictions")
    recorded(restore, "make_predict_step", "predictions")
    return lambda: {kind: [step._cache_size() for step in steps] for kind, steps in made.items()}


def test_a_run_of_several_epochs_and_validations_compiles_once(trained, tmp_path, compiled):
    run = tmp_path / "run"
    flags = [*trained.flags("frozen_downstream"), "--config.accumulate=2", f"--workdir={run}"]
    assert trained.run("train", *flags) == 0
    assert compiled() == {"update": [1], "predictions": [1]}
    assert trained.run("evaluate", f"--workdir={run}") == 0
    assert trained.run("evaluate", f"--workdir={run}", "--split=validation") == 0
    assert compiled() == {"update": [1], "predictions": [1, 1, 1]}
