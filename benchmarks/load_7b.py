"""Loading a 7B-shaped LLaMA: `huggingface.load_base` beside a plain read of the same files, and its host memory.

The files are random, of LLaMA-2 7B's shapes (13.5 GB in bfloat16, four files), written to ``--directory`` and kept
there. Every measurement is a fresh process. Before a cold one the page cache of the files is emptied, before a warm one
it is filled; how much came from the disk is printed, since beside a model of 13.5 GB not all of the files fit into the
cache of a machine of 24 GB. The host's peak is what the process holds at the most above its start (interpreter, jax,
one small program) and above the model. For example::

    python benchmarks/load_7b.py --directory llama7b --rounds 2

On 2 cores and 24 GB, nothing else on the machine, medians of two rounds::

    plain read, 1 thread         cold  13.5 s  1.02 GB/s    warm   2.9 s  4.69 GB/s
    plain read, as many threads  cold   7.1 s  1.91 GB/s    warm   2.0 s  6.78 GB/s
    load_base, 1 device          cold  48.9 s  0.28 GB/s    warm  41.8 s  0.32 GB/s (2.6 GB from the disk)
        host peak 486 MB; bound 262 + 300 = 562 MB holds
    load_base, 8 CPU devices     cold  46.6 s  0.29 GB/s    warm  41.7 s  0.32 GB/s (3.7 GB from the disk)
        host peak 448 MB; bound 562 MB holds
    fingerprint                  cold   0.6 s               warm   0.4 s

The "device" is the CPU here, which transposes, checks and copies every weight on the cores that also read. Without the
setting of FAKE the eight pretended devices peak at 580 to 670 MB (three layers).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 1 << 24
ALLOWED = 300_000_000  # bytes of host memory beside the largest tensor
SHARD = 4_500_000_000
FAKE = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
    # Else the allocator keeps some 200 MB of what the eight devices' own programs have freed; a real device has memory
    # of its own for that.
    "MALLOC_MMAP_THRESHOLD_": "1000000",
}
MEASURES = {
    "plain read, 1 thread": ("read", 1, {}),
    "plain read, as many threads": ("read", 0, {}),
    "load_base, 1 device": ("load", 1, {}),
    "load_base, 8 CPU devices": ("load", 8, FAKE),
    "fingerprint": ("fingerprint", 0, {}),
}


def shape_of(layers):
    """Return the config of LLaMA-2 7B, with this many layers."""
    from jaxlora.models.llama_shape import LlamaConfig

    return LlamaConfig(32000, 4096, 11008, layers, 32, 32, 128, dtype="bfloat16")


def tensor_shapes(c):
    """Return the shape of each tensor of the files, by name, in the order in which Hugging Face writes them."""
    square, up, down = (c.embed, c.embed), (c.mlp, c.embed), (c.embed, c.mlp)
    layer = {f"self_attn.{name}_proj": square for name in "qkvo"}
    layer |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
    layer |= {"input_layernorm": (c.embed,), "post_attention_layernorm": (c.embed,)}
    shapes = {"model.embed_tokens.weight": (c.vocab, c.embed)}
    for i in range(c.layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (c.embed,), "lm_head.weight": (c.vocab, c.embed)}


def write(directory, layers):
    """Write the files unless they are there: each tensor a window, at its own offset, of one random buffer."""
    import ml_dtypes
    import numpy as np

    from jaxlora import files
    from jaxlora.errors import UserError
    from jaxlora.interop.llama_config import to_json
    from jaxlora.interop.tensors import model_files, write_sharded

    config = shape_of(layers)
    shapes = tensor_shapes(config)
    try:
        there = model_files(directory)
        if there.names == sorted(shapes) and (directory / "config.json").exists():
            return
    except UserError:
        pass
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.safetensors*"):
        path.unlink()
    rng = np.random.default_rng(0)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    random = np.empty(max(sizes.values()) + len(shapes) * 8192, ml_dtypes.bfloat16)
    for start in range(0, random.size, 1 << 24):
        part = random[start : start + (1 << 24)]
        part[:] = 0.02 * rng.standard_normal(part.size, np.float32)
    offsets = {name: 8192 * number for number, name in enumerate(shapes)}
    write_sharded(
        directory,
        {name: 2 * size for name, size in sizes.items()},
        lambda name: random[offsets[name] :][: sizes[name]].reshape(shapes[name]),
        SHARD,
    )
    files.write_json(directory / "config.json", to_json(config))
    for path in directory.glob("*.safetensors"):  # only pages that are on the disk can be dropped from the cache
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def plain_read(directory, threads):
    """Read all of the files into one buffer a thread."""
    paths = sorted(directory.glob("*.safetensors"))
    descriptors = {path: os.open(path, os.O_RDONLY) for path in paths}
    chunks = [(descriptors[path], start) for path in paths for start in range(0, path.stat().st_size, CHUNK)]

    def read(number):
        buffer = bytearray(CHUNK)
        return sum(os.preadv(file, [buffer], start) for file, start in chunks[number::threads])

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        size = sum(pool.map(read, range(threads)))
    return {"seconds": time.perf_counter() - began, "bytes": size}


def memory(field):
    """Return a field of /proc/self/status in bytes: VmRSS, or VmHWM, the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024


def forget_peak():
    """Let VmHWM start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def load(directory, fsdp):
    """Load the base; the host's peak is what the process holds above its start and the model's bytes on the devices.

    Where the device is a CPU its memory is the process's own, so the model is subtracted: whole from the peak of the
    whole load (`peak`), and, since a peak before the last tensor could hide under what is not loaded yet, after each
    tensor what there is of it by then (`strict_peak`). A layer's temporary arrays are never subtracted, although they
    lie on the device too.
    """
    import collections
    import dataclasses

    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxlora.interop import huggingface
    from jaxlora.interop.llama_config import read_config
    from jaxlora.interop.tensors import model_files
    from jaxlora.models.llama import Llama
    from jaxlora.train import mesh

    config = dataclasses.replace(read_config(directory), dtype="bfloat16")
    abstract = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0)))
    shardings = mesh.shardings(mesh.make_mesh(fsdp, 1), nnx.state(abstract))
    wanted = collections.Counter(leaf.shape for leaf in jax.tree.leaves(nnx.state(abstract)))
    own = jax.devices()[0].platform == "cpu"

    def held():
        """Return the bytes of the parameters, as far as they are there yet, without a temporary array like one."""
        sizes = collections.defaultdict(list)
        for array in jax.live_arrays():
            sizes[array.shape].append(sum(shard.data.nbytes for shard in array.addressable_shards))
        return sum(sum(sizes[shape][:count]) for shape, count in wanted.items())

    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((256, 256))))
    source = model_files(directory)
    largest, total = max(source.bytes(name) for name in source.names), huggingface.base_bytes(directory)
    before, peaks, excess = memory("VmRSS"), [], []

    def progress(_):
        peaks.append(memory("VmHWM"))
        excess.append(peaks[-1] - own * held())
        forget_peak()

    forget_peak()
    began = time.perf_counter()
    state = jax.block_until_ready(huggingface.load_base(directory, abstract, shardings, progress))
    seconds = time.perf_counter() - began
    peaks.append(memory("VmHWM"))
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    model = sum(s.data.nbytes for array in arrays for s in array.addressable_shards)
    return {
        "seconds": seconds,
        "bytes": total,
        "devices": f"{len(jax.devices())} {jax.devices()[0].device_kind}",
        "largest": largest,
        "before": before,
        "model": model,
        "peak": max(peaks) - before - own * model,
        "strict_peak": max(excess) - before,
    }


def fingerprint(directory, _):
    """Time the digest that a checkpoint carries of its base."""
    from jaxlora.interop import huggingface

    began = time.perf_counter()
    value = huggingface.fingerprint(directory)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": huggingface.base_bytes(directory), "value": value}


def child(directory, what, number):
    """Run one measurement in this process and print it as JSON."""
    if what == "read" and not number:
        from jaxlora.interop.huggingface import _READERS as number
    result = {"read": plain_read, "load": load, "fingerprint": fingerprint}[what](directory, number)
    # Bytes that came from the disk, whoever asked: what tells a cold run from a warm one.
    result["from_disk"] = resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512
    print(json.dumps(result))


def measure(directory, name, cold):
    """Run one measurement in a fresh process, after emptying the page cache of the files, or after filling it."""
    for path in directory.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if not cold:
        plain_read(directory, 4)
    what, number, environment = MEASURES[name]
    command = [sys.executable, __file__, "--directory", directory, "--child", what, str(number)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(name, temperature, results):
    """Print the medians of one measurement."""
    middle = {k: statistics.median(r[k] for r in results) for k in ("seconds", "bytes", "from_disk")}
    rates = sorted(r["bytes"] / r["seconds"] / 1e9 for r in results)
    line = f"{name:28} {temperature}  {middle['seconds']:7.2f} s  "
    if name != "fingerprint":
        line += f"{statistics.median(rates):5.2f} GB/s ({rates[0]:.2f} to {rates[-1]:.2f})"
    print(f"{line}  from disk {middle['from_disk'] / 1e9:.1f} of {middle['bytes'] / 1e9:.1f} GB")
    if name == "fingerprint":
        print(f"    {', '.join(sorted({r['value'] for r in results}))}, in {len(results)} runs")
    if "peak" in results[0]:
        last = results[-1]
        bound = last["largest"] + ALLOWED
        peak, strict = (max(r[k] for r in results) for k in ("peak", "strict_peak"))
        print(
            f"    {last['devices']}: host peak {peak / 1e6:.0f} MB (tensor by tensor {strict / 1e6:.0f} MB) above the "
            f"start ({last['before'] / 1e6:.0f} MB) and the model ({last['model'] / 1e9:.2f} GB); bound "
            f"{last['largest'] / 1e6:.0f} + {ALLOWED / 1e6:.0f} = {bound / 1e6:.0f} MB "
            f"{'holds' if max(peak, strict) <= bound else 'DOES NOT HOLD'}"
        )


def main():
    """Parse the command line; write the files, measure in turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="for the files; they stay there")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(MEASURES), help="the measurements that begin so")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.directory, args.child[0], int(args.child[1]))
    began = time.perf_counter()
    write(args.directory, args.layers)
    print(f"files: {time.perf_counter() - began:.0f} s", flush=True)
    names = [name for name in MEASURES if name.startswith(tuple(args.only))]
    results = {}
    for number in range(args.rounds):
        for cold in (True, False):
            for name in names:
                result = measure(args.directory, name, cold)
                results.setdefault((name, "cold" if cold else "warm"), []).append(result)
                print(f"# round {number + 1}: {name}, {'cold' if cold else 'warm'}: {result}", file=sys.stderr)
    for (name, temperature), every in results.items():
        report(name, temperature, every)


if __name__ == "__main__":
    main()
