"""What the project promises of TPU slices, held against the compiler, without a TPU.

    python benchmarks/plan.py --output=runs/bench/plan.json [--only=NAME,NAME]

Needs the extra `tpu`. Each target is one plan in a process of its own: the bases are shapes alone, so nothing is
downloaded. The exit status is 1 where a target is missed. On two quiet cores a plan takes about a minute.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu"}
_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads")  # fmt: skip
_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192}  # fmt: skip
SHAPES = {
    "llama-7b": (32000, 4096, 11008, 32, 32, 32),
    "llama-2-13b": (32000, 5120, 13824, 40, 40, 40),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8),
    "llama-3-70b": (128256, 8192, 28672, 80, 64, 8),
}
_DOWNSTREAM = "configs/mimic.py:mimic3,mor,frozen_downstream"
_CLINICAL = "configs/mimic.py:mimic3,clinical"
_TWO = ("--seven",)  # two adapters of rank 16 on all seven linears, a language-model loss
# name: (base, slice, rows, what, flags, limit in GiB of arguments + temporaries + outputs beside the state, or None)
TARGETS = {
    "8b-8-rows": ("llama-3.1-8b", "v5e:2x4", 8, _TWO, {"mesh.fsdp": 8, "remat": "full"}, 4.4),
    "8b-32-rows": ("llama-3.1-8b", "v5e:2x4", 32, _TWO, {"mesh.fsdp": 8, "remat": "full"}, 8.0),
    "8b-32-rows-in-2": ("llama-3.1-8b", "v5e:2x4", 32, _TWO, {"mesh.fsdp": 8, "remat": "full", "accumulate": 2}, 8.0),
    "7b-v5e-8": ("llama-7b", "v5e:2x4", 16, _DOWNSTREAM, {"remat": "full"}, None),
    "7b-v5e-8-step-1": ("llama-7b", "v5e:2x4", 16, _CLINICAL, {"remat": "full"}, None),
    "7b-one-v5e-int8": ("llama-7b", "v5e:1x1", 2, _DOWNSTREAM, {"remat": "full", "quantize": "int8"}, None),
    "7b-one-v5e-nf4": ("llama-7b", "v5e:1x1", 2, _DOWNSTREAM, {"remat": "full", "quantize": "nf4"}, None),
    "13b-v5e-16": ("llama-2-13b", "v5e:4x4", 16, _DOWNSTREAM, {"remat": "full"}, None),
    "8b-v6e-8-replicated": ("llama-3.1-8b", "v6e:2x4", 8, _DOWNSTREAM, {"mesh.fsdp": 1, "remat": "full"}, None),
    "70b-v5p-64": ("llama-3-70b", "v5p:4x4x4", 64, _DOWNSTREAM, {"remat": "full"}, None),
}
# Weak scaling: as many rows a chip, base cut over as many; a chip's memory and work may differ by 3 %.
SCALING = {
    f"scaling-{name}": ("llama-7b", f"v5e:{name}", rows, _CLINICAL, {"mesh.fsdp": 8, "remat": "full"}, None)
    for name, rows in (("2x4", 8), ("16x16", 256))
}
_SECONDS = 90


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/bench/plan.json")
    parser.add_argument("--only", default="")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    everything = TARGETS | SCALING
    if given.one:
        print(json.dumps(_planned(*everything[given.one][:5])))
        return 0
    results = {}
    for name in given.only.split(",") if given.only else everything:
        start = time.perf_counter()
        command = [sys.executable, __file__, f"--one={name}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=_environment())
        if done.returncode:
            results[name] = {"passed": False, "error": done.stderr.strip().splitlines()[-1:]}
        else:
            report = json.loads(done.stdout.splitlines()[-1])
            results[name] = _judged(report, everything[name][5], time.perf_counter() - start)
        print(name, json.dumps({k: v for k, v in results[name].items() if k != "report"}), flush=True)
    if set(SCALING) <= set(results):
        results["scaling"] = _scaling(*(results[name].get("report") for name in SCALING))
        print("scaling", json.dumps(results["scaling"]))
    output = Path(given.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result["passed"] for result in results.values()) else 1


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def _planned(base: str, topology: str, rows: int, what, flags: dict) -> dict:
    from jaxlora.plan.topology import leave_accelerators

    leave_accelerators()
    from jaxlora.plan.plan import planned

    with tempfile.TemporaryDirectory() as folder:
        rope = {"rope_theta": 500000.0, "rope_scaling": _ROPE} if "3.1" in base else {}
        shape = dict(zip(_NAMES, SHAPES[base], strict=True))
        Path(folder, "config.json").write_text(json.dumps(_LLAMA | shape | rope))
        config = _config(what)
        config.base, config.batch_size, config.dtype = folder, rows, "bfloat16"
        config.data.dir, config.data.length = "", 2048
        with config.unlocked():
            config.update_from_flattened_dict(flags)
        # Results go to the last line; what else is printed is no JSON.
        return planned(config, topology)


def _config(what):
    if what == _TWO:
        from jaxlora.config import adapter, default

        config = default()
        config.adapters.clinical = adapter(16, 32, targets=("all-linear",))
        config.adapters.downstream = adapter(16, 32, targets=("all-linear",))
        config.active, config.trainable = ("clinical", "downstream"), ("downstream",)
        return config
    import importlib.util

    path, row = what.split(":")
    spec = importlib.util.spec_from_file_location("config", REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(row)


def _judged(report: dict, limit: float | None, seconds: float) -> dict:
    """What a target came to: it fits, within its own limit where it has one, and was compiled in time."""
    kinds = report.get("memory_gib", {})
    needed = report["needed_gib"] - kinds.get("program", 0.0)
    return {
        "passed": report["fits"] and (limit is None or needed <= limit) and seconds <= _SECONDS,
        "fits": report["fits"],
        "gib": round(needed, 3),
        "limit_gib": limit or report["device_gib"],
        "mesh": report["mesh"],
        "seconds": round(seconds, 1),
        "report": report,
    }


def _scaling(small: dict | None, large: dict | None) -> dict:
    """How much a chip's memory, its work, and the compiler's time grow from the small slice to the large one.

    The work is the analytic count: the compiler's own counts a loop once, and on the small slice it makes loops of the
    products whose weights arrive in parts, on the large one it does not.
    """
    if not (small and large and small["fits"] and large["fits"]):
        return {"passed": False}
    ratios = {
        "memory": large["needed_gib"] / small["needed_gib"],
        "flops": _work(large) / _work(small),
        "flops_of_the_program": large["flops_of_the_program"] / small["flops_of_the_program"],
        "received": _received(large) / _received(small),
        "compile_seconds": large["compile_seconds"] / small["compile_seconds"],
    }
    constant = all(abs(ratios[name] - 1) <= 0.03 for name in ("memory", "flops"))
    return {"passed": constant and large["compile_seconds"] <= _SECONDS, **ratios}


def _work(report: dict) -> float:
    return report["flops_per_token"]["hardware"] * report["rows"] * report["length"] / report["devices"]


def _received(report: dict) -> float:
    return sum(each["received_gib"] for each in report["collectives"])


if __name__ == "__main__":
    sys.exit(main())
