"""A language-model LoRA step of a 7B-shaped LLaMA on one GPU, beside transformers + PEFT on the same GPU.

The base is random, of LLaMA-7B's shape, in bfloat16; the adapter has rank 8 on q_proj and v_proj; rows are 2,048 tokens
of ``--notes`` notes each. The rate of the GPU's bfloat16 matrix product (8,192 square) is measured in the same rounds,
and model FLOPs are counted against it: 4 P + 6 p a token and causal attention, P the base's matrix parameters and p the
adapter's. Ours saves as many activations as fit: the first of ``--remat`` that does not run out of memory. The peer
(SDPA, eager, PyTorch's AdamW) runs with gradient checkpointing and without, and sees each row as one note.

Every figure is a process of its own, so that each has the whole GPU; the sides take turns, and the medians of the
rounds count. It needs jax[cuda12], flax, optax, numpy and safetensors; for the peer torch with CUDA, transformers and
peft, without which ours is measured alone. For example::

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --layers 8 --rows 8     # a smaller GPU
    python benchmarks/gpu.py --tiny                  # every path in a minute, on a CPU too
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "peft")
REMATS = ("none", "save_dots", "save_qkv", "full")
OUT_OF_MEMORY = {"failed": "out of memory"}


def shape_of(options, remat="none"):
    """Return the LlamaConfig of the base."""
    from jaxlora.models.llama_shape import LlamaConfig

    how = dict(remat=remat, attention=options.kernel)
    if options.tiny:
        return LlamaConfig(128, 32, 64, 2, 4, 2, 8, **how)
    return LlamaConfig(32000, 4096, 11008, options.layers, 32, 32, 128, dtype="bfloat16", **how)


def flops_a_token(c, options):
    """Return the model FLOPs that a step costs a token."""
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    base = sum(c.layers * a * b for a, b in map(c.features, linears)) + c.vocab * c.embed
    adapter = sum(c.layers * options.rank * (a + b) for a, b in map(c.features, ("q_proj", "v_proj")))
    attention = 3 * c.layers * 2 * (options.length / options.notes) * c.heads * c.head_dim
    return 4 * base + 6 * adapter + attention


def measure_matmul(options):
    """Return the FLOP/s of a chain of square matrix products."""
    import jax
    import jax.numpy as jnp

    size, products = (256, 4) if options.tiny else (8192, 20)
    x, w = (jax.random.normal(jax.random.key(n), (size, size), jnp.bfloat16) * size**-0.5 for n in range(2))

    @jax.jit
    def chain(x):
        return jax.lax.fori_loop(0, products, lambda _, x: x @ w, x)

    chain(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        chain(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return {"flops": 2 * size**3 * products / statistics.median(seconds), "device": jax.devices()[0].device_kind}


def measure_ours(options, remat):
    """Return tokens a second of jaxlora's training step, with what the backward pass finds saved given by `remat`."""
    import jax
    import numpy as np
    from flax import nnx
    from jax.sharding import Mesh

    from jaxlora import partition
    from jaxlora.models.llama import Llama
    from jaxlora.models.lora_spec import LoraSpec
    from jaxlora.train.mesh import put_batch, replicated
    from jaxlora.train.objective import Objective
    from jaxlora.train.optimizer import make_optimizer
    from jaxlora.train.step import init_state, make_train_step

    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    specs = {"clinical": LoraSpec(options.rank, 2.0 * options.rank)}
    config = shape_of(options, remat)
    definition, params, frozen = partition.split(
        nnx.eval_shape(lambda: Llama(config, specs, rngs=nnx.Rngs(0))), ("adapter/clinical",)
    )
    params, frozen = (random_state(state, replicated(mesh)) for state in (params, frozen))
    optimizer = make_optimizer(lambda count: 1e-4, weight_decay=0.01, clip=0.0)
    state = init_state(params, optimizer, mesh)
    step = make_train_step(definition, optimizer, Objective("lm", ("clinical",)), False, state, mesh)
    positions = np.arange(options.length) % (options.length // options.notes)
    rows = (options.rows, options.length)
    batch = {
        "tokens": np.random.default_rng(0).integers(1, config.vocab, rows, dtype=np.int32),
        "segments": np.broadcast_to(np.cumsum(positions == 0), rows).astype(np.int32),
        "positions": np.broadcast_to(positions, rows).astype(np.int32),
    }
    batch, key = put_batch(mesh, batch), jax.random.key(0)
    losses = []

    def run(count):
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, frozen, batch, key)
        losses.append(float(metrics["loss"]))

    try:
        found = timed(run, options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return OUT_OF_MEMORY
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return found | {"losses": losses, "peak_bytes": peak, "flops": flops_a_token(config, options)}


def random_state(state, sharding):
    """Return a state of the same shapes with random weights, made on the device: norms of ones, else small normals."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    leaves = []
    for number, (path, leaf) in enumerate(nnx.to_flat_state(state)):

        def make(shape=leaf.shape, dtype=leaf.dtype, ones=path[-1] == "scale", number=number):
            return jnp.ones(shape, dtype) if ones else 0.02 * jax.random.normal(jax.random.key(number), shape, dtype)

        leaves.append((path, leaf.replace(jax.jit(make, out_shardings=sharding)())))
    return nnx.from_flat_state(leaves)


def measure_peer(options, checkpointing):
    """Return tokens a second of the same step by transformers and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cpu" if options.tiny and not torch.cuda.is_available() else "cuda"
    c = shape_of(options)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, c.dtype))
    config = LlamaConfig(
        vocab_size=c.vocab,
        hidden_size=c.embed,
        intermediate_size=c.mlp,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=options.length,
        use_cache=False,
        attn_implementation="sdpa",
    )
    losses = []
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lora = LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)
        tokens = torch.randint(1, c.vocab, (options.rows, options.length), device=device)

        def run(count):
            for _ in range(count):
                loss = model(input_ids=tokens, labels=tokens).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())

        found = timed(run, options)
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return found | {"losses": losses, "peak_bytes": peak}


def timed(run, options):
    """Return the first steps' seconds and then tokens a second; `run(count)` waits for the last of its steps."""
    start = time.perf_counter()
    run(2)
    first, start = time.perf_counter() - start, time.perf_counter()
    run(options.steps)
    seconds = time.perf_counter() - start
    return {
        "first_seconds": first,
        "tokens_a_second": options.rows * options.length * options.steps / seconds,
    }


def measure(side, options):
    """Return the measurement that a side names: "matmul", "ours:REMAT", "peer" or "peer:checkpointing"."""
    name, _, setting = side.partition(":")
    if name == "matmul":
        return measure_matmul(options)
    return measure_ours(options, setting) if name == "ours" else measure_peer(options, bool(setting))


def in_process(side, arguments, cache):
    """Return a side's measurement, made by a process of its own."""
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    command = [sys.executable, __file__, *arguments, "--side", side]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{side:20s} {json.dumps(found)}", flush=True)
    return found


def peer_is_here(options):
    """Return whether the peer can be measured: its packages are here, and CUDA unless tiny."""
    try:
        import peft  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"the peer is left out: {error}", flush=True)
        return False
    if not options.tiny and not torch.cuda.is_available():
        print("the peer is left out: torch has no CUDA", flush=True)
        return False
    return True


def compare(options, arguments):
    """Return the report of all rounds."""
    rounds = {}
    with tempfile.TemporaryDirectory() as cache:

        def take(side):
            rounds.setdefault(side, []).append(in_process(side, arguments, cache))
            return rounds[side][-1]

        ours = next((side for remat in options.remat if (side := f"ours:{remat}") and take(side) != OUT_OF_MEMORY), "")
        if not ours:
            raise SystemExit(f"no level of --remat fits; give fewer --rows than {options.rows} or fewer --layers")
        del rounds[ours]  # this one compiled; it counts again below
        peers = ["peer", "peer:checkpointing"] if peer_is_here(options) and not options.alone else []
        for _ in range(options.rounds):
            for side in ("matmul", ours, *peers):
                if OUT_OF_MEMORY not in rounds.get(side, []):
                    take(side)
    rate = statistics.median(found["flops"] for found in rounds["matmul"])
    speeds = {
        side: statistics.median(found["tokens_a_second"] for found in measured)
        for side, measured in rounds.items()
        if side != "matmul" and OUT_OF_MEMORY not in measured
    }
    flops = rounds[ours][-1]["flops"]
    return {
        "device": rounds["matmul"][-1]["device"],
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "options": {name: value for name, value in vars(options).items() if name not in ("side", "out")},
        "matmul_tflops": rate / 1e12,
        "flops_a_token": flops,
        "tokens_a_second": speeds,
        "mfu": {side: speed * flops / rate for side, speed in speeds.items()},
        "ratio": {side: speeds[ours] / speeds[side] for side in peers if side in speeds},
        "rounds": rounds,
    }


def version_of(name):
    """Return the version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def parse(arguments):
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="of the base; LLaMA-7B has 32")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--notes", type=int, default=1, help="notes packed into a row, of equal length")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter")
    parser.add_argument("--remat", nargs="+", default=list(REMATS), choices=REMATS, help="levels to try, in this order")
    parser.add_argument("--kernel", default="auto", help="of attention, as config.attention.kernel")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--alone", action="store_true", help="leave the peer out")
    parser.add_argument("--tiny", action="store_true", help="a base of two narrow layers, on any device")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tiny:
        options.length, options.rows, options.steps = 64, 2, 2
    if options.length % options.notes:
        parser.error(f"--notes {options.notes} does not divide --length {options.length}")
    return options


def main(arguments):
    """Measure and report."""
    options = parse(arguments)
    if options.side:
        print(json.dumps(measure(options.side, options)))
        return
    report = compare(options, arguments)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['device']}: bfloat16 matrix product {report['matmul_tflops']:.1f} TFLOP/s")
    for side, speed in report["tokens_a_second"].items():
        print(f"{side:20s} {speed:10.0f} tokens/s  MFU {report['mfu'][side]:.1%}")
    for side, ratio in report["ratio"].items():
        print(f"ours is {ratio:.2f} times {side}")


if __name__ == "__main__":
    main(sys.argv[1:])
