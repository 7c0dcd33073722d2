"""A small plan, compiled by libtpu in a process as a user starts it; the rest of the package is tested without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlora.plan.markdown import markdown

pytestmark = pytest.mark.tpu
REPOSITORY = Path(__file__).parents[2]
SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def plan(tmp_path):
    """Runs the verb in a process of its own, which must not open a device; returns it and plan.json."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))

    def run(*flags):
        fixed = ["--config=configs/mimic.py:mimic3,clinical", f"--config.base={tmp_path}", f"--output={tmp_path}/plan"]
        command = [sys.executable, "-m", "jaxlora.cli", "plan", *fixed, "--config.batch_size=8", *flags]
        environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *sys.path])
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        path = tmp_path / "plan" / "plan.json"
        return done, json.loads(path.read_text()) if path.exists() else None

    return run


def test_a_plan_that_fits(plan):
    done, report = plan("--topology=v5e:2x2", "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr
    assert report["fits"] and report["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    kinds = report["memory_gib"]
    assert sum(kinds.values()) == pytest.approx(report["needed_gib"])
    per_layer = 4 * 256 * 256 + 3 * 256 * 512
    norms = (2 * 4 + 1) * 256 * 4
    assert kinds["base"] * 2**30 == pytest.approx((4 * per_layer + 2 * 512 * 256) * 2 / 2 + norms)
    assert sum(each["received_gib"] for each in report["collectives"]) > 0  # of the base that is cut over two
    assert report["update_seconds"]["bound"] > 0
    assert done.stdout.strip().endswith(markdown(report).strip())
