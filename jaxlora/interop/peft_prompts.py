"""What PEFT's directories of prefix tuning, prompt tuning, P-tuning and adaptation prompts hold.

PEFT saves what a virtual token has become, and not the network that made it: one tensor, `prompt_embeddings`. So a
prefix with a projection goes out, and comes in, as the plain prefix that it computes, and a P-tuning as the prompt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxlora.errors import UserError
from jaxlora.interop import peft_config
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptFamily, PromptSpec, PTuningSpec
from jaxlora.models.prompts import make_prompts

TOKENS = "prompt_embeddings"  # in the place of a layer's name
Weights = dict[str, dict[str, np.ndarray]]
Shapes = dict[str, dict[str, tuple[int, ...]]]
# How virtual tokens were made, or started from, which they do not show.
_PASSING = {
    "encoder_dropout",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "init_weights",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}
_KNOWN = {"modules_to_save", "num_virtual_tokens", "peft_type", "task_type"}


def read_tokens(path: Path, raw: dict[str, Any], shape: LlamaConfig) -> PrefixSpec | PromptSpec:
    """Returns what the adapter_config.json at `path` says of virtual tokens.

    Args:
      raw: its fields. shape: of the base.

    Raises:
      UserError: they are for another base, or a field that cannot be represented.
    """
    spec = PrefixSpec if raw["peft_type"] == "PREFIX_TUNING" else PromptSpec
    sizes = _sizes(spec, shape)
    peft_config.refuse_unknown(path, raw, {*_PASSING, *_KNOWN, *sizes})
    for field, ours in sizes.items():
        if raw.get(field) not in (None, ours):
            raise UserError(
                f"{path}: {field} = {raw[field]!r}, the base makes it {ours}; give the base it was made for"
            )
    with peft_config.fields_of(path, raw):
        found = spec(peft_config.whole(raw["num_virtual_tokens"]))
    found.check(shape.layers, str(path))
    return found


def network(raw: dict[str, Any]) -> str:
    """Returns what made the virtual tokens of a config, in words, "" where they were learned themselves."""
    if raw["peft_type"] == "PREFIX_TUNING" and raw.get("prefix_projection"):
        return "a projection"
    return "the encoder of P-tuning" if raw["peft_type"] == "P_TUNING" else ""


def tokens_json(spec: PrefixSpec | PromptSpec, layers: int, weights: Weights) -> dict[str, Any]:
    """Returns the own fields of virtual tokens in their adapter_config.json; PEFT adds what is left out of the base.

    Args:
      layers: of the base. weights: as `tokens_shapes` has them.
    """
    fields = {"num_layers": layers, "num_transformer_submodules": 1, "num_virtual_tokens": spec.virtual_tokens}
    *_, heads, width = weights[TOKENS]["table"].shape
    if isinstance(spec, PrefixSpec):
        return fields | {"num_attention_heads": heads, "prefix_projection": False, "token_dim": heads * width}
    return fields | {"prompt_tuning_init": "RANDOM", "token_dim": width}


def tokens_shapes(spec: PrefixSpec | PromptSpec, shape: LlamaConfig, raw: dict[str, Any]) -> Shapes:
    """Returns the shape of what virtual tokens are: keys and values of every layer, `[n, layers, 2, kv_heads,
    head_dim]`, or embeddings, `[n, embed]`."""
    of_token = (shape.layers, 2, shape.kv_heads, shape.head_dim) if isinstance(spec, PrefixSpec) else (shape.embed,)
    return {TOKENS: {"table": (spec.virtual_tokens, *of_token)}}


def read_adaptation(path: Path, raw: dict[str, Any], shape: LlamaConfig) -> AdaptationPromptSpec:
    """Returns what the adapter_config.json at `path` says of an adaptation prompt, as `read_tokens` does."""
    peft_config.refuse_unknown(path, raw, {*_KNOWN, "adapter_layers", "adapter_len", "target_modules"})
    if raw.get("target_modules") not in (None, "self_attn"):
        raise UserError(f"{path}: target_modules = {raw['target_modules']!r} cannot be represented; 'self_attn' can")
    with peft_config.fields_of(path, raw):
        spec = AdaptationPromptSpec(*(peft_config.whole(raw[field]) for field in ("adapter_len", "adapter_layers")))
    spec.check(shape.layers, str(path))
    return spec


def adaptation_json(spec: AdaptationPromptSpec) -> dict[str, Any]:
    """Returns an adaptation prompt's own fields of its adapter_config.json."""
    return {"adapter_layers": spec.layers, "adapter_len": spec.length, "target_modules": "self_attn"}


def adaptation_shapes(spec: AdaptationPromptSpec, shape: LlamaConfig, raw: dict[str, Any]) -> Shapes:
    """Returns the shapes of an adaptation prompt's parameters by full name of the attention."""
    return {
        f"model.layers.{layer}.self_attn": {"prompt": (spec.length, shape.embed), "gate": ()}
        for layer in range(shape.layers - spec.layers, shape.layers)
    }


def from_parameters(
    values: Mapping[tuple[str, ...], np.ndarray], name: str, spec: PromptFamily, shape: LlamaConfig
) -> tuple[PromptFamily, Weights]:
    """Returns the description and the weights of adapter `name` as a directory of PEFT has them.

    Args:
      values: a run's parameters by path. shape: of the base.
    """
    own = {path[2:]: np.asarray(value) for path, value in values.items() if path[:2] == ("adapters", name)}
    if isinstance(spec, AdaptationPromptSpec):
        modules = adaptation_shapes(spec, shape, {})
        return spec, {m: {leaf: own[leaf,][i] for leaf in ("prompt", "gate")} for i, m in enumerate(modules)}
    folded = isinstance(spec, PTuningSpec) or isinstance(spec, PrefixSpec) and spec.projection
    plain = (PrefixSpec if isinstance(spec, PrefixSpec) else PromptSpec)(spec.virtual_tokens)
    table = _computed(own, spec, shape) if folded else own["table",]
    return plain, {TOKENS: {"table": table.reshape(tokens_shapes(plain, shape, {})[TOKENS]["table"])}}


def to_parameters(weights: Weights, spec: PromptFamily, name: str) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the parameters of adapter `name` by path."""
    leaves = {leaf: np.stack([here[leaf] for here in weights.values()]) for leaf in next(iter(weights.values()))}
    if not isinstance(spec, AdaptationPromptSpec):
        leaves["table"] = leaves["table"][0].reshape(spec.virtual_tokens, -1)
    return {("adapters", name, leaf): value for leaf, value in leaves.items()}


def _computed(own: Mapping[tuple[str, ...], np.ndarray], spec: PromptFamily, shape: LlamaConfig) -> np.ndarray:
    """What the network of an adapter makes of its table, in the shape that `tokens_shapes` gives."""
    module = nnx.eval_shape(lambda: make_prompts({"it": spec}, shape, rngs=nnx.Rngs(0)))["it"]
    nnx.update(module, nnx.from_flat_state([(path, nnx.Param(jax.numpy.asarray(x))) for path, x in own.items()]))
    with jax.default_matmul_precision("highest"):
        made = module.embeddings(None) if isinstance(spec, PTuningSpec) else module.keys_and_values()
    return np.asarray(made) if made.ndim == 2 else np.moveaxis(np.asarray(made), 2, 0)


def _sizes(spec: type, shape: LlamaConfig) -> dict[str, int]:
    """What PEFT notes of the base."""
    of_layer = (shape.kv_heads, shape.kv_heads * shape.head_dim) if spec is PrefixSpec else (shape.heads, shape.embed)
    fields = ("num_attention_heads", "token_dim", "num_layers", "num_transformer_submodules")
    return dict(zip(fields, (*of_layer, shape.layers, 1), strict=True))
