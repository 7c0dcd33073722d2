"""Model directories of Hugging Face: the base in, streamed to its devices, and a base out."""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.interop import bert
from jaxlora.interop.llama_config import read_config, read_json, to_json
from jaxlora.interop.place import Path_, Target, key, place
from jaxlora.interop.tensors import TensorFiles, model_files
from jaxlora.models.bases import Model, Shape
from jaxlora.models.bert import BertConfig
from jaxlora.models.llama import Llama
from jaxlora.models.lora_spec import module_name

_ALONE = {
    ("embedding",): "model.embed_tokens.weight",
    ("norm", "scale"): "model.norm.weight",
    ("lm_head",): "lm_head.weight",
    ("head", "kernel"): "score.weight",
}
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
# Old LLaMA files hold the rotary frequencies; a tied model and one with a head need no lm_head; a head is no base.
_NEEDLESS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|lm_head\.weight|score\.weight")
_READERS = 8
_AHEAD = 150_000_000  # bytes read ahead of the devices


def read_shape(directory: str | Path) -> Shape:
    """Returns the shape of a base, as its config.json has it.

    Raises:
      UserError: what `llama_config.read_config` or `bert.read_config` raises.
    """
    return bert.read_config(directory) if bert.is_bert(read_json(directory)) else read_config(directory)


def _tensors(directory: str | Path) -> TensorFiles:
    """The tensors of a base by the names that `tensor_names` and `bert.tensor_names` give."""
    path = Path(directory) / "config.json"
    is_bert = path.exists() and bert.is_bert(read_json(directory))
    return bert.tensors(directory, bert.read_config(directory)) if is_bert else model_files(directory)


def tensor_names(path: Path_, layers: int) -> list[str]:
    """Returns the names of the tensors that make up the parameter at `path`, one a layer, or one alone."""
    if path[0] != "blocks":
        return [_ALONE[path]]
    _, part, leaf = path
    if part in _NORMS:
        return [f"model.layers.{i}.{_NORMS[part]}.weight" for i in range(layers)]
    suffix = {"kernel": "weight", "bias": "bias"}[leaf]
    return [f"{module_name(part, i)}.{suffix}" for i in range(layers)]


def load_base(
    directory: str | Path,
    model: Model,
    shardings: Mapping[Path_, NamedSharding],
    progress: Callable[[int], None] = lambda _: None,
    quantized: Callable[[str, float], None] = lambda *_: None,
) -> nnx.State:
    """Reads the base weights from a Hugging Face directory, each device shard straight from its slices of the files.

    Slices are read in parallel, some 150 MB ahead of the devices; beside that the host holds one tensor at a time. A
    kernel's layers are written one by one into its stack on the devices, transposed and quantised there.

    Args:
      directory: with `model.safetensors`, or `model.safetensors.index.json` and the files it names.
      model: the (abstract) model; its parameters give shapes and dtypes.
      shardings: a sharding for each parameter to load: the base's, or also the head's, of a merged model.
      progress: called with the bytes of each tensor as it is on the devices.
      quantized: called with the name of each tensor that is quantised and its relative error (Frobenius).

    Returns:
      The state of those parameters, on the devices.

    Raises:
      UserError: a missing, truncated or damaged file; a tensor that is missing, of another shape, not expected, or
        holds NaN or infinity.
    """
    source = _tensors(directory)
    targets = _targets(model, shardings)
    for target in targets:
        for name in target.names:
            source.check(name, target.shape, "config.json")
    expected = {name for target in targets for name in target.names}
    for name in source.names:
        if name not in expected and not _NEEDLESS.fullmatch(name):
            raise UserError(
                f"{source.where[name]}: tensor {name!r} has no place in the model that config.json makes; "
                "download both again"
            )
    parts = _read_ahead(source, [(name, target.stored) for target in targets for name in target.names])
    loaded, checks = [], {}
    for target in targets:
        shards = ((name, next(parts)) for name in target.names)
        values, found = place(target, shards, lambda name: progress(source.bytes(name)))
        loaded += [
            (path, leaf.replace(value)) for (path, leaf), value in zip(target.leaves.items(), values, strict=True)
        ]
        checks |= found
    for name, check in checks.items():
        if not check.finite:
            raise UserError(f"{source.where[name]}: tensor {name!r} holds NaN or infinity; download it again")
    for target in targets:
        for name in target.names if target.quantize else ():
            quantized(name, float(checks[name].error))
    return nnx.from_flat_state(loaded)


def _targets(model: Model, shardings: Mapping[Path_, NamedSharding]) -> list[Target]:
    """What the tensors become, in the order of the parameters."""
    wholes: dict[Path_, dict[Path_, nnx.Variable]] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path in shardings:
            wholes.setdefault(path[:3], {})[path] = leaf
    targets, named = [], bert.tensor_names if isinstance(model.config, BertConfig) else tensor_names
    for path, leaves in wholes.items():
        is_quantized = path not in leaves  # but its codes and its scales are, in this order
        if is_quantized:
            shape = model.config.features(path[1])
        else:
            shape = leaves[path].shape[1 if path[0] == "blocks" else 0 :]
        targets.append(
            Target(
                named(path, model.config.layers),
                shape if path[0] == "embedding" else shape[::-1],
                leaves,
                shardings,
                model.config.quantize if is_quantized else "",
            )
        )
    return targets


def lacks_pooler(directory: str | Path) -> bool:
    """Returns whether a base is a BERT whose files have no pooler, so that it gets a fresh one."""
    return any(path == Path(directory) for path in _tensors(directory).where.values())


def left_out(directory: str | Path) -> list[str]:
    """Returns the tensors of a BERT's files that no BERT has, by their names there."""
    return bert.left_out(_tensors(directory))


def base_bytes(directory: str | Path) -> int:
    """Returns the size of the tensors in a directory."""
    source = _tensors(directory)
    return sum(source.bytes(name) for name in source.names)


def base_parameters(directory: str | Path) -> int:
    """Returns how many parameters the base in a directory has, a BERT's heads of pretraining not counted."""
    source = _tensors(directory)
    return sum(math.prod(source.shape(name)) for name in source.names)


def save(directory: str | Path, model: Llama) -> None:
    """Writes the base of `model` as config.json and model.safetensors, in float32 or the base's dtype.

    The adapters are left out. The tokenizer's files are the caller's to add; BOS is 1 and EOS 2, as in every LLaMA
    with a SentencePiece tokenizer.
    """
    from safetensors.numpy import save as to_bytes

    flat = nnx.to_flat_state(nnx.state(model))
    values = {path: np.asarray(leaf[...]) for path, leaf in flat if path[0] != "head" and "adapters" not in path}
    directory, tensors = Path(directory), to_tensors(values)
    files.write(directory / "model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    files.write_json(directory / "config.json", to_json(model.config))


def to_tensors(values: Mapping[Path_, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a base, by their names in a LLaMA's files, of its parameters by path."""
    tensors = {}
    for path, value in values.items():
        stacked = path[0] == "blocks"
        for i, name in enumerate(tensor_names(path, len(value) if stacked else 1)):
            part = value[i] if stacked else value
            tensors[name] = np.ascontiguousarray(part.T if path[-1] in ("kernel", "lm_head") else part)
    return tensors


def public_name(directory: str | Path) -> str:
    """Returns a name of a base that does not tell where it lies: the hub's, of a snapshot in its cache, else the
    folder's own."""
    parts = Path(directory).resolve().parts
    if len(parts) > 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return parts[-1]


def fingerprint(directory: str | Path) -> str:
    """Returns a digest of the base: the shape in config.json, and of every tensor its name, shape, dtype and up to 64
    whole rows, evenly spaced.

    An adapter belongs to the base it was trained on; a checkpoint carries this digest to say which. It tells one model
    from another, and is no checksum against damage: a change between the rows goes unseen.
    """
    return _fingerprint(os.path.realpath(directory), _state_of(Path(directory)))


@functools.lru_cache(maxsize=8)
def _fingerprint(directory: str, _: tuple) -> str:
    config = read_shape(directory)
    # What is usual is left out, so that a field to come changes no fingerprint.
    unusual = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    shape = {field: value for field, value in dataclasses.asdict(config).items() if field in unusual}
    digest, source = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()), _tensors(directory)

    def rows(name: str) -> bytes:
        count = source.shape(name)[0] if source.shape(name) else 0
        spaced = sorted({round(i) for i in np.linspace(0, count - 1, min(count, 64))})
        return source.rows(name, spaced)

    with ThreadPoolExecutor(_READERS) as pool:
        for name, content in zip(source.names, pool.map(rows, source.names), strict=True):
            digest.update(f"{name}{list(source.shape(name))}{source.dtype(name)}".encode() + content)
    return digest.hexdigest()[:16]


def _state_of(directory: Path) -> tuple:
    """What changes when a file of the directory does."""
    kept = [
        path for path in sorted(directory.glob("*")) if path.suffix in (".json", ".safetensors", ".bin", ".msgpack")
    ]
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in kept)


def _read_ahead(source: TensorFiles, jobs: list[tuple[str, NamedSharding]]) -> Iterator[dict]:
    """Yields, for each job in order, the slices that this host's devices hold, by index."""

    def read(name: str, place: NamedSharding) -> dict:
        indices = {key(i): i for i in place.addressable_devices_indices_map(source.shape(name)).values()}
        return dict(zip(indices, source.read_parts(name, list(indices.values())), strict=True))

    waiting: collections.deque[tuple[int, Future]] = collections.deque()
    todo = collections.deque(jobs)
    held = 0  # bytes that are read or being read, the tensor that the caller has among them
    with ThreadPoolExecutor(_READERS) as pool:
        while todo or waiting:
            while todo and (not held or held + source.bytes(todo[0][0]) <= _AHEAD):
                waiting.append((source.bytes(todo[0][0]), pool.submit(read, *todo.popleft())))
                held += waiting[-1][0]
            size = waiting[0][0]
            yield waiting.popleft()[1].result()
            held -= size
