"""config.json of LLaMA, Mistral and Qwen2 models, to and from `LlamaConfig`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.rotary import Rope

# What a config.json leaves out has the value that transformers gives it.
_DEFAULTS = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
}
_LAYERS = 1000  # more than any; a damaged number would have us look for so many tensors
ARCHITECTURES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def read_config(directory: str | Path) -> LlamaConfig:
    """Reads config.json.

    Raises:
      UserError: no such file, not JSON, a missing field, or a feature that this model does not compute.
    """
    path, raw = Path(directory) / "config.json", read_json(directory)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise UserError(f"{path}: model_type = {kind!r} is not supported; known are {', '.join(_DEFAULTS)}")
    raw = {**_DEFAULTS[kind], **raw}
    _refuse_the_unknown(path, raw)
    try:
        heads, embed = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        kv_heads = int(raw.get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise UserError(f"{path}: {heads} heads are no multiple of {kv_heads} key-value heads; download it again")
        config = LlamaConfig(
            vocab=int(raw["vocab_size"]),
            embed=embed,
            mlp=int(raw["intermediate_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(raw.get("head_dim") or embed // heads),
            rms_epsilon=float(raw["rms_norm_eps"]),
            rope=_rope(path, raw),
            window=int(raw.get("sliding_window") or 0) if kind == "mistral" else 0,
            biases=_biases(kind, raw),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )
        _check_possible(config)
        return config
    except KeyError as missing:
        raise UserError(f"{path} has no field {missing}; it is not the config.json of a LLaMA") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise UserError(
            f"{path}: a size is no number or impossible; this is no config.json of a LLaMA, download it again"
        ) from None


def _check_possible(c: LlamaConfig) -> None:
    """Raises ValueError where a number cannot be a LLaMA's: a typing error would compute nonsense, or for ever."""
    sizes = (c.vocab, c.embed, c.mlp, c.layers, c.heads, c.kv_heads, c.head_dim)
    rope = (c.rope.theta, c.rope.factor, c.rope.high - c.rope.low)
    if min(sizes) < 1 or c.layers > _LAYERS or c.head_dim % 2 or min(c.window, c.rope.context) < 0:
        raise ValueError
    if not all(0 < number < math.inf for number in (c.rms_epsilon, *rope)):
        raise ValueError


def read_json(directory: str | Path) -> dict[str, Any]:
    """Returns config.json as it is written.

    Raises:
      UserError: no such file, or no JSON object.
    """
    path = Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"config.base: no {path}; give the directory of a Hugging Face LLaMA")
    return files.read_json_object(path, "download it again")


def stop_tokens(directory: str | Path) -> set[int]:
    """Returns the tokens that end a text: one or several, in config.json and generation_config.json.

    Raises:
      UserError: one is no number.
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = Path(directory) / name
        given = files.read_json_object(path, "download it again").get("eos_token_id") if path.exists() else None
        given = [] if given is None else given if isinstance(given, list) else [given]
        if not all(isinstance(token, int) for token in given):
            raise UserError(f"{path}: eos_token_id = {given!r} is no number; download it again")
        found.update(given)
    return found


def to_json(c: LlamaConfig) -> dict[str, Any]:
    """Returns the config.json of a model, a causal language model with a SentencePiece tokenizer (BOS 1, EOS 2).

    Raises:
      ValueError: no model type of transformers has these biases.
    """
    qwen2 = set(c.biases) == {"q_proj", "k_proj", "v_proj"}
    kind = "mistral" if c.window else "qwen2" if qwen2 else "llama"
    if not qwen2 and set(c.biases) not in ({*()}, {*_ATTENTION}, {*_MLP}, {*_ATTENTION, *_MLP}):
        raise ValueError(f"biases of {', '.join(c.biases)} alone")
    rope = {"rope_type": c.rope.kind, "rope_theta": c.rope.theta}
    if c.rope.kind != "default":
        rope["factor"] = c.rope.factor
    if c.rope.kind == "llama3":
        rope |= {"low_freq_factor": c.rope.low, "high_freq_factor": c.rope.high}
        rope["original_max_position_embeddings"] = c.rope.context
    result = {
        "architectures": [f"{ARCHITECTURES[kind]}ForCausalLM"],
        "model_type": kind,
        "vocab_size": c.vocab,
        "hidden_size": c.embed,
        "intermediate_size": c.mlp,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_epsilon,
        "rope_parameters": rope,
        "rope_theta": c.rope.theta,  # where transformers 4 looks
        "rope_scaling": None if c.rope.kind == "default" else {k: v for k, v in rope.items() if k != "rope_theta"},
        "hidden_act": "silu",
        "tie_word_embeddings": c.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(np.dtype(c.dtype)),
    }
    if c.rope.context:
        result["max_position_embeddings"] = c.rope.context
    if kind == "mistral":
        result["sliding_window"] = c.window
    if kind == "llama":
        result |= {"attention_bias": "q_proj" in c.biases, "mlp_bias": "up_proj" in c.biases}
    return result


def _refuse_the_unknown(path: Path, raw: dict[str, Any]) -> None:
    qwen2 = raw["model_type"] == "qwen2"
    kinds = raw.get("layer_types") or []
    unsupported = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "use_sliding_window": qwen2 and bool(raw.get("use_sliding_window")),
        "layer_types": any(kind != kinds[0] for kind in kinds) if isinstance(kinds, list) else True,
        "partial_rotary_factor": raw.get("partial_rotary_factor", 1.0) != 1.0,
        "quantization_config": bool(raw.get("quantization_config")),
    }
    for field, wrong in unsupported.items():
        if wrong:
            raise UserError(f"{path}: {field} = {raw.get(field)!r} is not supported; this model is not computed here")


def _biases(kind: str, raw: dict[str, Any]) -> tuple[str, ...]:
    if kind == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    if kind == "mistral":
        return ()
    return (_ATTENTION if raw.get("attention_bias") else ()) + (_MLP if raw.get("mlp_bias") else ())


def _rope(path: Path, raw: dict[str, Any]) -> Rope:
    """Reads either spelling: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (before); where a
    file has both, transformers takes the latter."""
    field = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(field) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: {field} is not an object; download it again")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    nested = any(isinstance(value, dict) for value in rope.values())  # a rope for each type of layer
    known = kind in ("default", "linear", "dynamic", "llama3") and rope.get("partial_rotary_factor", 1.0) == 1.0
    if nested or not known:
        raise UserError(f"{path}: {field} = {rope!r} is not supported; known are default, linear, dynamic and llama3")
    if kind == "default":
        return Rope(theta)
    longest = raw.get("max_position_embeddings")
    context = rope.get("original_max_position_embeddings") or longest if kind == "llama3" else longest
    factor = float(rope["factor"])
    if kind == "linear":
        return Rope(theta, kind, factor)
    if kind == "dynamic":
        return Rope(theta, kind, factor, int(context))
    return Rope(theta, kind, factor, int(context), float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))
