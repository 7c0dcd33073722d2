"""What the compiled update computes, over what the method needs: on this CPU, and compiled for a v5e chip.

    python benchmarks/flops.py --out runs/bench/flops.json

XLA's count of the compiled update with two and with three unrolled layers, differenced, over 4 P + 6 p (4 p for the
frozen adapter) and causal attention; remat "none". A row is one block of 64 positions, as XLA counts a loop once. The
second needs the extra `tpu`.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

LIMIT = 1.03
PLACES = ("cpu", "v5e:1x1")


def ratio(place):
    """Return the compiled work of a layer over the analytic count."""
    from jaxlora.plan.topology import leave_accelerators

    leave_accelerators()
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from jaxlora import partition
    from jaxlora.chips import parse_slice
    from jaxlora.models.llama import Llama
    from jaxlora.models.llama_shape import LlamaConfig
    from jaxlora.models.lora_spec import LoraSpec
    from jaxlora.plan.topology import devices_of
    from jaxlora.train.flops import flops
    from jaxlora.train.mesh import make_mesh, replicated, shardings
    from jaxlora.train.objective import Objective
    from jaxlora.train.optimizer import make_optimizer
    from jaxlora.train.step import TrainState, abstract_optimizer, make_train_step

    adapters = {name: LoraSpec(16, 32.0, targets=("all-linear",)) for name in ("clinical", "downstream")}
    mesh = make_mesh(1, 1, jax.devices() if place == "cpu" else devices_of(parse_slice(place)))
    rows, length = 8, 64

    def counted(shape):
        definition, state = nnx.split(nnx.eval_shape(lambda: Llama(shape, adapters, 2, rngs=nnx.Rngs(0))))
        placed = shardings(mesh, state)
        leaves = [
            (path, leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path])))
            for path, leaf in nnx.to_flat_state(state)
        ]
        model = nnx.merge(definition, nnx.from_flat_state(leaves))
        definition, params, frozen = partition.split(model, ["downstream", "head"])
        optimizer = make_optimizer(optax.constant_schedule(1e-3), weight_decay=0.01, clip=1.0)
        state = TrainState(params, abstract_optimizer(params, optimizer, mesh))
        step = make_train_step(definition, optimizer, Objective("binary", tuple(adapters)), False, state, mesh)
        whole = replicated(mesh)
        batch = {name: (rows, length) for name in ("tokens", "segments", "positions")}
        batch |= {name: (rows, length // 16) for name in ("notes", "labels")}
        batch = {name: jax.ShapeDtypeStruct(size, np.int32, sharding=whole) for name, size in batch.items()}
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
        return step.lower(state, frozen, batch, key).compile().cost_analysis()["flops"]

    dtype = "float32" if place == "cpu" else "bfloat16"
    shape = LlamaConfig(64, 2048, 5632, 2, 32, 4, 64, unroll=True, attention="xla", dtype=dtype)
    shapes = shape, dataclasses.replace(shape, layers=3)
    found = [counted(each) for each in shapes]
    needed = [
        flops(each, adapters, tuple(adapters), ("downstream", "head"), length, 2, "none").model for each in shapes
    ]
    return (found[1] - found[0]) / (rows * length * (needed[1] - needed[0]))


def main():
    """Run each place in a process of its own and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/flops.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(ratio(given.one)))
        return 0
    results = {}
    for place in PLACES:
        command = [sys.executable, __file__, "--one", place]
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
        error = {} if found else {"error": done.stderr.strip().splitlines()[-1:]}
        results[place] = {"ratio": found, "goal": LIMIT, "passed": bool(found) and found <= LIMIT, **error}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
