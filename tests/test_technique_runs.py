"""Every technique as a trainable clinical adapter under a downstream LoRA: both learn, and a stopped run goes on."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlora import pipeline
from jaxlora.config import adalora, adaptation_prompt, ia3, p_tuning, prefix, prompt

TABLE = Path(__file__).parents[1] / "configs" / "table.py"
CLINICAL = {
    "adalora": adalora(4, 2, 8, end=2),
    "ia3": ia3(),
    "prefix": prefix(3, projection=True, hidden=8),
    "prompt": prompt(3),
    "p_tuning": p_tuning(3, "lstm", hidden=4, layers=2, dropout=0.1),
    "adaptation_prompt": adaptation_prompt(4, 1),
}


def adapter_of(name):
    """Which adapter a parameter is of."""
    parts = name.split("/")
    return parts[parts.index("adapters") + 1] if "adapters" in parts else parts[0]


def bits(stored, workdir, step=None):
    """The parameters of a checkpoint, as bytes."""
    return {name: value.tobytes() for name, value in stored(workdir, step)["model"].items()}


QUICK = ("adalora", "adaptation_prompt")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CLINICAL]


@pytest.mark.parametrize("technique", CASES)
def test_both_adapters_are_trained_and_a_stopped_run_goes_on(technique, small, stored, tmp_path):
    config = runpy.run_path(str(TABLE))["get_config"]("trainable_downstream")
    config.path, config.base, config.data.dir = str(small.notes), str(small.base), str(small.data)
    config.data.length, config.batch_size, config.epochs, config.learning_rate = 64, 4, 1, 0.01
    config.evaluations = 3
    config.adapters.clinical = CLINICAL[technique]
    workdir = tmp_path / "run"
    pipeline.train_run(config, str(workdir))
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    before, after = bits(stored, workdir, steps[0]), bits(stored, workdir)
    changed = {adapter_of(name) for name in after if before[name] != after[name]}
    assert changed == {"clinical", "downstream", "head"} == {adapter_of(name) for name in after}

    shutil.rmtree(workdir / "checkpoints" / str(steps[-1]))
    pipeline.train_run(config, str(workdir))
    assert bits(stored, workdir) == after
    assert 0 <= pipeline.evaluate_run(str(workdir))["auroc"] <= 1

    if technique == "adalora":
        model, optimizer = stored(workdir)["model"], stored(workdir)["optimizer"]
        left = [np.count_nonzero(x) for name, x in model.items() if name.endswith("clinical/e")]
        assert sum(left) == 2 * 2 * 2  # the target, of q and v in two layers
        of_budget = [name for name in optimizer if "sensitivity" in name or "uncertainty" in name or "kept" in name]
        assert of_budget and all("clinical" in name for name in of_budget), optimizer.keys()
        assert all(np.all(np.any(x, axis=-1)) for name, x in model.items() if name.endswith("downstream/b"))
