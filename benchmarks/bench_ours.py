"""Our side of the throughput figures: the training step of `jaxlora train`, a stretch of updates at a time.

`benchmarks/bench.py` starts it; for every line on standard input it trains on and answers with what it did, in JSON.
"""

import itertools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlora.config import adapter, default
from jaxlora.data import builders
from jaxlora.data.loader import Batches
from jaxlora.data.tokens import Tokenizer, tokenize
from jaxlora.models.llama import Llama
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.train.assemble import adapter_specs, assemble
from jaxlora.train.devices import lay_out, share_cores
from jaxlora.train.mesh import put_batch, shardings
from jaxlora.train.objective import Objective
from jaxlora.train.update import make_update
from jaxlora.workers import cores

DENSE = LlamaConfig(vocab=32000, embed=512, mlp=1376, layers=8, heads=8, kv_heads=8, head_dim=64)


def dense(config, mesh):
    """Return the model, the objective and endless batches of the dense step: random weights, whole rows."""
    config.active = config.trainable = ("clinical",)
    config.adapters.clinical = adapter(rank=8, alpha=16)
    definition, state = nnx.split(Llama(DENSE, adapter_specs(config, DENSE.layers), rngs=nnx.Rngs(0)))
    placed = shardings(mesh, state)
    leaves = [(path, leaf.replace(jax.device_put(leaf[...], placed[path]))) for path, leaf in nnx.to_flat_state(state)]
    model = nnx.merge(definition, nnx.from_flat_state(leaves))
    shape = (4, 512)
    tokens = np.random.default_rng(0).integers(1, DENSE.vocab, shape, np.int32)
    batch = {"tokens": tokens, "segments": np.ones(shape, np.int32), "positions": np.tile(np.arange(512), (4, 1))}
    return model, Objective("lm", config.active), itertools.repeat(batch)


def notes(config, mesh):
    """Return the model, the objective and the batches, over and over, of a config of the public notes."""
    prepared = builders.load(config.data.dir, config.data.name)
    task, labels = prepared.task, len(prepared.task.outputs)
    split = prepared.split("train")
    kept = tokenize(split, Tokenizer(config.base), config.data.length, "truncate", lambda _: None, task.kind)
    batches = Batches(kept, config.data.length, config.batch_size, labels, config.epochs, config.seed)
    objective = Objective(task.kind, tuple(config.active), (), config.loss_chunk)
    return assemble(config, labels, mesh), objective, itertools.chain.from_iterable(itertools.repeat(batches))


def matmul_rate(size=2048):
    """Return this machine's float32 rate of a square product, in FLOP/s: the best of ten."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product, seconds = jax.jit(jnp.matmul), []
    for _ in range(11):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def main():
    """Build the work that the first argument names, answer "ready", then train a stretch for every line."""
    work, updates = sys.argv[1], int(sys.argv[2])
    config = default() if work == "dense" else config_of(*sys.argv[3:])
    if work == "dense":
        jax.config.update("jax_num_cpu_devices", cores())  # what `share_cores` does for a base of this size
        config.batch_size = 4
    else:
        share_cores(config.base)
    mesh = lay_out(config, 0)
    model, objective, batches = (dense if work == "dense" else notes)(config, mesh)
    step, state, frozen, _ = make_update(config, model, objective, 1000, mesh)
    key, batches = jax.random.key(0), iter(batches)
    state, metrics = step(state, frozen, put_batch(mesh, next(batches)), key)
    jax.block_until_ready(metrics)
    print(json.dumps({"ready": jax.__version__}), flush=True)
    for _ in sys.stdin:
        real, start = 0, time.perf_counter()
        for _ in range(updates):
            batch = next(batches)
            state, metrics = step(state, frozen, put_batch(mesh, batch), key)
            real += int((batch["segments"] > 0).sum())
        jax.block_until_ready(metrics)
        done = {"tokens": real, "seconds": time.perf_counter() - start}
        if work == "dense":
            done["matmul"] = matmul_rate()
        print(json.dumps(done), flush=True)


def config_of(path, run, *fields):
    """Return the config of a file, with fields set as `name=value`."""
    import runpy

    config = runpy.run_path(path)["get_config"](run)
    for field in fields:
        name, value = field.split("=", 1)
        config.update_from_flattened_dict({name: type(config[name])(value) if name in config else value})
    for given in config.adapters.values():
        given.workdir = ""  # a step takes as long on fresh adapters
    return config


if __name__ == "__main__":
    main()
