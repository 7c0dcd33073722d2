"""Eight learning rates and seeds as one `jaxlora sweep`, beside eight runs of `jaxlora train` one after the other.

The members are those of configs/sweep.py on the public notes. Every command is a process of its own, timed from its
start to its end: imports, tokenization, compilation (nothing is cached), training and checkpoints. The first ten losses
of each member are compared with those of its own run; after hundreds of updates at a large rate rounding has grown to
differences of its own. For example::

    python benchmarks/together.py --base tinyllama260k/hf --aci-bench aci-bench --mts-dialog mts-dialog \
        --directory runs/bench/together --out runs/bench/together.json

A shorter one: ``--epochs 1``, and ``--separate 2`` to time two of the runs and take their mean for all.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def timed(verb, *flags):
    """Runs a verb of jaxlora in a process of its own; returns its wall time in seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jaxlora.cli", verb, *flags], env=environment, capture_output=True)
    if done.returncode:
        sys.exit(f"jaxlora {verb} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return time.perf_counter() - start


def members(row):
    """Returns the members of configs/sweep.py: name to what each changes."""
    found = importlib.util.spec_from_file_location("sweep", ROOT / "configs" / "sweep.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return dict(module.get_config(row).sweep)


def first_losses(workdir):
    """Returns the losses of a run's first ten updates."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line][:10]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--aci-bench", required=True)
    parser.add_argument("--mts-dialog", required=True)
    parser.add_argument("--row", default="frozen_downstream")
    parser.add_argument("--epochs", type=int, help="of both sides; left out, as the config has it")
    parser.add_argument("--separate", type=int, default=8, help="how many separate runs are timed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", type=Path, required=True, help="emptied before every round")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    data, clinical, own = args.directory / "data", args.directory / "clinical", members(args.row)
    flags = [f"--config.base={args.base}", f"--config.aci_bench={args.aci_bench}"]
    flags += [f"--config.mts_dialog={args.mts_dialog}", f"--config.data.dir={data}", f"--config.clinical={clinical}"]
    notes, sweep = f"--config={ROOT}/configs/public_notes.py:", f"--config={ROOT}/configs/sweep.py:{args.row}"
    epochs = [] if args.epochs is None else [f"--config.epochs={args.epochs}"]
    shutil.rmtree(args.directory, ignore_errors=True)
    timed("prepare", f"{notes}clinical", *flags, f"--workdir={data}")
    if args.row not in ("lora", "head_only"):
        timed("train", f"{notes}clinical", *flags, *epochs, f"--workdir={clinical}")

    together, separate, differences = [], [], []
    for _ in range(args.rounds):
        for name in ("together", "separate"):
            shutil.rmtree(args.directory / name, ignore_errors=True)
        together.append(timed("sweep", sweep, *flags, *epochs, f"--workdir={args.directory / 'together'}"))
        seconds = []
        for name, fields in list(own.items())[: args.separate]:
            workdir, changed = args.directory / "separate" / name, [f"--config.{f}={v}" for f, v in fields.items()]
            seconds.append(timed("train", f"{notes}{args.row}", *flags, *epochs, *changed, f"--workdir={workdir}"))
            pairs = zip(first_losses(workdir), first_losses(args.directory / "together" / name), strict=True)
            differences.append(max(abs(own - other) for own, other in pairs))
        separate.append(statistics.mean(seconds) * len(own))
    result = {
        "members": len(own),
        "row": args.row,
        "epochs": args.epochs,
        "separate_runs_timed": args.separate,
        "together_seconds": together,
        "separate_seconds": separate,
        "ratio": statistics.median(a / b for a, b in zip(together, separate, strict=True)),
        "largest_difference_of_the_first_ten_losses": max(differences),
        "cores": os.cpu_count(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
