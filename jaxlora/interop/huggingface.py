"""LLaMA directories of Hugging Face: config.json and safetensors, in and out. No pickle is ever loaded."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxlora.errors import UserError
from jaxlora.models.llama import Llama, LlamaConfig

_BLOCK_TENSORS = {
    ("attention_norm", "scale"): "input_layernorm",
    ("mlp_norm", "scale"): "post_attention_layernorm",
    **{(name, "kernel"): f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{(name, "kernel"): f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}


def read_config(directory: str | Path) -> LlamaConfig:
    """Reads config.json.

    Raises:
      UserError: no such file, not JSON, a missing field, or a feature that this model does not compute.
    """
    path = _config_path(directory)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a JSON object; download it again")
    rope_field = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(rope_field) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: {rope_field} is not an object; download it again")
    unsupported = {
        "model_type": raw.get("model_type") != "llama",
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(raw.get("attention_bias")),
        "mlp_bias": bool(raw.get("mlp_bias")),
        rope_field: rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for field, wrong in unsupported.items():
        if wrong:
            raise UserError(f"{path}: {field} = {raw.get(field)!r} is not supported; this is not a plain LLaMA")
    try:
        heads, embed = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        kv_heads = int(raw.get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise UserError(f"{path}: {heads} heads are no multiple of {kv_heads} key-value heads; download it again")
        return LlamaConfig(
            vocab=int(raw["vocab_size"]),
            embed=embed,
            mlp=int(raw["intermediate_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(raw.get("head_dim") or embed // heads),
            rms_epsilon=float(raw["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            tied=raw.get("tie_word_embeddings", False),
        )
    except KeyError as missing:
        raise UserError(f"{path} has no field {missing}; it is not the config.json of a LLaMA") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{path}: a size is no number; this is no config.json of a LLaMA, download it again") from None


def load_base(directory: str | Path, model: Llama, shardings: nnx.State, progress: Callable[[str], None]) -> nnx.State:
    """Reads the base weights from a Hugging Face directory, each device shard straight from its slices of the files.

    Args:
      directory: with `model.safetensors`, or `model.safetensors.index.json` and the files it names.
      model: the (abstract) model; its base parameters give shapes and dtypes.
      shardings: a sharding for each base parameter, in the form of the base state.
      progress: called with the name of each tensor as it is read.

    Returns:
      The state of the base partition, on the devices.

    Raises:
      UserError: a missing, truncated or damaged file, a missing tensor, or one of another shape.
    """
    files = _Tensors(directory)
    loaded = []
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path not in shardings:
            continue
        names = _tensor_names(path, model.config.layers)
        progress(".".join(path))
        stacked, transposed = path[0] == "blocks", path[-1] == "kernel" or path[-1] == "lm_head"
        shape = leaf.shape[1:] if stacked else leaf.shape
        for name in names:
            files.check(name, shape[::-1] if transposed else shape)

        def shard(index, names=names, stacked=stacked, transposed=transposed, dtype=leaf.dtype):
            layers, within = (names[index[0]], index[1:]) if stacked else (names, index)
            parts = [files.read(name, within[::-1] if transposed else within) for name in layers]
            parts = [(part.T if transposed else part).astype(dtype) for part in parts]
            return np.stack(parts) if stacked else parts[0]

        loaded.append((path, leaf.replace(jax.make_array_from_callback(leaf.shape, shardings[path], shard))))
    return nnx.from_flat_state(loaded)


def save(directory: str | Path, model: Llama) -> None:
    """Writes the base of `model` as config.json and model.safetensors, in float32 or the base's dtype.

    The adapters are left out. The tokenizer's files are the caller's to add; BOS is 1 and EOS 2, as in every LLaMA
    with a SentencePiece tokenizer.
    """
    directory, c = Path(directory), model.config
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[0] == "head" or "adapters" in path:
            continue
        value = np.asarray(leaf[...])
        for i, name in enumerate(names := _tensor_names(path, c.layers)):
            part = value[i] if len(names) > 1 or path[0] == "blocks" else value
            tensors[name] = np.ascontiguousarray(part.T if path[-1] in ("kernel", "lm_head") else part)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.embed,
        "intermediate_size": c.mlp,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_epsilon,
        "rope_theta": c.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": c.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(np.dtype(c.dtype)),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def fingerprint(directory: str | Path) -> str:
    """Returns a digest of the base: the shape in config.json, and name, shape, dtype and first bytes of every tensor.

    An adapter belongs to the base it was trained on; a checkpoint carries this digest to say which.
    """
    digest = hashlib.sha256(repr(read_config(directory)).encode())
    files = _Tensors(directory)
    for name in sorted(files.where):
        part = files.slice(name)
        first = part[tuple(slice(0, 8) for _ in part.get_shape())]
        digest.update(f"{name}{part.get_shape()}{part.get_dtype()}".encode() + first.tobytes())
    return digest.hexdigest()[:16]


class _Tensors:
    """The tensors of a directory's safetensors files, read slice by slice."""

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        _config_path(directory)
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                outside = any(Path(name).name != name or name in ("", "..") for name in names)
            except (ValueError, KeyError, AttributeError, TypeError):
                names = []
            if not names:
                raise UserError(f"{index} is damaged; download it again")
            if outside:
                raise UserError(f"{index} names a file outside its directory; refuse it")
            paths = [directory / name for name in names]
        elif single.exists():
            paths = [single]
        elif list(directory.glob("*.bin")):
            raise UserError(f"{directory} has only .bin (pickle) weights; convert them to safetensors first")
        else:
            raise UserError(f"{directory} has no model.safetensors; give the directory of a Hugging Face LLaMA")
        self.where, self.handles = {}, {}
        for path in paths:
            if not path.exists():
                raise UserError(f"{path} is missing although {index.name} names it; download it again")
            try:
                handle = safe_open(path, framework="numpy")
            except (SafetensorError, OSError):
                raise UserError(f"{path} is truncated or not a safetensors file; download it again") from None
            self.where.update(dict.fromkeys(handle.keys(), path))
            self.handles[path] = handle

    def slice(self, name: str):
        if name not in self.where:
            raise UserError(f"{next(iter(self.handles)).parent} has no tensor {name!r}; it does not fit config.json")
        return self.handles[self.where[name]].get_slice(name)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        found = tuple(self.slice(name).get_shape())
        if found != tuple(shape):
            raise UserError(f"{self.where[name]}: tensor {name!r} is {list(found)}, config.json makes it {list(shape)}")

    def read(self, name: str, index: tuple) -> np.ndarray:
        return self.slice(name)[index]


def _config_path(directory: str | Path) -> Path:
    path = Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"config.base: no {path}; give the directory of a Hugging Face LLaMA")
    return path


def _tensor_names(path: tuple[str, ...], layers: int) -> list[str]:
    if path[0] == "blocks":
        return [f"model.layers.{i}.{_BLOCK_TENSORS[path[1:]]}.weight" for i in range(layers)]
    return [
        {
            ("embedding",): "model.embed_tokens.weight",
            ("norm", "scale"): "model.norm.weight",
            ("lm_head",): "lm_head.weight",
        }[path]
    ]
