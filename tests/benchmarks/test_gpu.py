"""The benchmark of a GPU, tiny and on whatever device there is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
TINY_FLOPS = 4 * (2 * 9216 + 128 * 32) + 6 * 2 * 8 * (64 + 48) + 3 * 2 * 2 * 64 * 32


def test_reports_rates_and_model_flops(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main(["--tiny", "--alone", "--rounds", "1", "--remat", "full", "--out", str(out)])
    report = json.loads(out.read_text())
    speed, rate = report["tokens_a_second"]["ours:full"], report["matmul_tflops"] * 1e12
    assert report["flops_a_token"] == report["rounds"]["ours:full"][0]["flops"] == TINY_FLOPS
    assert speed > 0 and report["mfu"]["ours:full"] == pytest.approx(speed * TINY_FLOPS / rate)
    first, last = report["rounds"]["ours:full"][0]["losses"]
    assert last < first < 6 and not report["ratio"]


def test_packed_notes_have_less_attention():
    options = gpu.parse(["--tiny", "--notes", "4"])
    assert gpu.flops_a_token(gpu.shape_of(options), options) == TINY_FLOPS - 3 * 2 * 2 * 48 * 32


def test_ours_needs_jax_flax_optax_numpy_and_safetensors_alone():
    code = f"""
import runpy, sys
sys.argv = ["gpu.py", "--tiny", "--notes", "2", "--side", "ours:save_qkv"]
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, found, modules = done.stdout.splitlines()
    assert json.loads(found)["tokens_a_second"] > 0
    others = {"array_record", "grain", "matplotlib", "ml_collections", "orbax", "pyarrow", "sentencepiece", "sklearn"}
    others |= {"tensorboardX", "tensorflow_datasets", "torch", "tqdm", "transformers"}
    assert not others & set(modules.split())


@pytest.mark.parity
@pytest.mark.parametrize("side", ["peer", "peer:checkpointing"])
def test_the_peer_trains_the_same_shape(side):
    found = gpu.measure(side, gpu.parse(["--tiny"]))
    assert found["losses"][1] < found["losses"][0] < 6 and found["tokens_a_second"] > 0
