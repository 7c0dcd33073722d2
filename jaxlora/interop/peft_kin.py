"""What PEFT's directories of AdaLoRA and (IA)^3 hold: their adapter_config.json, and the shapes of their parameters."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlora.errors import UserError
from jaxlora.interop import peft_config
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import MODULES, LoraSpec

Shapes = dict[str, dict[str, tuple[int, ...]]]
_TARGETING = {"exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"}
_SHARED = {"bias", "fan_in_fan_out", "modules_to_save", "peft_type", "task_type"}
# Our field: PEFT's.
_NUMBERS = {
    "rank": "init_r",
    "target_rank": "target_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "start": "tinit",
    "end": "tfinal",
    "interval": "deltaT",
    "beta1": "beta1",
    "beta2": "beta2",
    "orthogonality": "orth_reg_weight",
}
_COUNTS = ("rank", "target_rank", "start", "end", "interval")
# `r` is LoRA's, and PEFT says that AdaLoRA has no use for it.
_PASSING = {"init_lora_weights", "r", "rank_pattern", "total_step"}


def read_adalora(path: Path, raw: dict[str, Any], shape: LlamaConfig) -> AdaLoraSpec:
    """Returns what the adapter_config.json at `path` says of an AdaLoRA.

    Args:
      raw: its fields. shape: of the base.

    Raises:
      UserError: what `AdaLoraSpec` cannot represent, by its name.
    """
    peft_config.refuse_unknown(path, raw, {*_TARGETING, *_SHARED, *_PASSING, *_NUMBERS.values()})
    with peft_config.fields_of(path, raw):
        modules = peft_config.targeted(path, raw, shape.layers)
        plain = peft_config.spec_of_sizes(LoraSpec(1, 1.0, targets=tuple(modules)).sizes(shape.layers), shape.layers)
        numbers = {
            ours: peft_config.whole(raw[theirs]) if ours in _COUNTS else float(raw[theirs])
            for ours, theirs in _NUMBERS.items()
        }
        if numbers["alpha"] <= 0:
            numbers["alpha"] = float(numbers["rank"])
        for module in modules:
            _left(raw, module, numbers["rank"])
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError
    spec = AdaLoraSpec(**numbers, targets=plain.targets, layers=plain.layers)
    spec.check(shape.layers, str(path))
    return spec


def adalora_json(spec: AdaLoraSpec, layers: int) -> dict[str, Any]:
    """Returns an AdaLoRA's own fields of its adapter_config.json.

    PEFT wants the updates of the whole run too, which no adapter knows: the fewest that it takes are written.
    """
    plain = peft_config.spec_of_sizes(spec.sizes(layers), layers)
    numbers = {theirs: peft_config.number(getattr(spec, ours)) for ours, theirs in _NUMBERS.items()}
    return numbers | {
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": list(plain.layers) or None,
        "rank_pattern": None,
        "target_modules": list(plain.targets),
        "total_step": spec.start + spec.end + 1,
    }


def adalora_shapes(spec: AdaLoraSpec, shape: LlamaConfig, raw: dict[str, Any]) -> Shapes:
    """Returns the shapes of an AdaLoRA's parameters by full name of the layer; a directory that PEFT wrote at the end
    of a training holds the triplets that are left alone."""
    found = {}
    for module in spec.sizes(shape.layers):
        features_in, features_out = shape.features(module.split(".")[-1])
        rank = _left(raw, module, spec.rank)
        found[module] = {"a": (features_in, rank), "e": (rank,), "b": (rank, features_out)}
    return found


def completed(spec: AdaLoraSpec, here: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the parameters of one layer at the rank that the training began with, zero where triplets were left out:
    PEFT's scale is of that rank."""
    room = (0, spec.rank - len(here["e"]))
    return {
        "a": np.pad(here["a"], ((0, 0), room)),
        "e": np.pad(here["e"], room),
        "b": np.pad(here["b"], (room, (0, 0))),
    }


def _left(raw: dict[str, Any], module: str, rank: int) -> int:
    """How many triplets of a layer the directory holds; raises ValueError where it says so of another rank."""
    pattern = raw.get("rank_pattern")
    if pattern is None:
        return rank
    kept = np.asarray(pattern[f"{module}.lora_E"])
    if kept.shape != (rank,) or kept.dtype != bool:
        raise ValueError
    return int(kept.sum())


def read_ia3(path: Path, raw: dict[str, Any], shape: LlamaConfig) -> Ia3Spec:
    """Returns what the adapter_config.json at `path` says of an (IA)^3.

    Args:
      raw: its fields. shape: of the base.

    Raises:
      UserError: what `Ia3Spec` cannot represent, by its name.
    """
    known = {"exclude_modules", "feedforward_modules", "init_ia3_weights", "target_modules", *_SHARED}
    peft_config.refuse_unknown(path, raw, known)
    with peft_config.fields_of(path, raw):
        modules = peft_config.targeted(path, raw, shape.layers, ())
        given = raw["feedforward_modules"]
        inner = [module for module in modules if _is_feedforward(given, module)]
    spec = _ia3_of(modules, inner, shape.layers)
    if set(spec.feedforward) & {module.split(".")[-1] for module in set(modules) - set(inner)}:
        raise UserError(
            f"{path}: feedforward_modules = {given!r} cannot be represented; a kind of layer is scaled on one side here"
        )
    spec.check(shape.layers, str(path))
    return spec


def ia3_json(spec: Ia3Spec, layers: int) -> dict[str, Any]:
    """Returns an (IA)^3's own fields of its adapter_config.json."""
    modules = spec.modules(layers)
    targets = _ia3_of(modules, [], layers).targets
    inner = [name for name in targets if name.split(".")[-1] in spec.feedforward]
    return {
        "fan_in_fan_out": False,
        "feedforward_modules": inner,
        "init_ia3_weights": True,
        "target_modules": list(targets),
    }


def ia3_shapes(spec: Ia3Spec, shape: LlamaConfig, raw: dict[str, Any]) -> Shapes:
    """Returns the shapes of an (IA)^3's vectors by full name of the layer."""
    found = {}
    for module in spec.modules(shape.layers):
        name = module.split(".")[-1]
        features_in, features_out = shape.features(name)
        found[module] = {"gain_in": (features_in,)} if name in spec.feedforward else {"gain_out": (features_out,)}
    return found


def _is_feedforward(given: str | list[str], module: str) -> bool:
    if isinstance(given, str):
        return re.fullmatch(given, module) is not None
    return any(module.endswith(name) for name in given)


def _ia3_of(modules: list[str], inner: list[str], layers: int) -> Ia3Spec:
    """The shortest description of an (IA)^3 in these layers, the input scaled in those of `inner`."""
    names = [name for name in MODULES if any(module.endswith(f".{name}") for module in modules)]
    feedforward = {module.split(".")[-1] for module in inner}
    regular = len(modules) == len(names) * layers
    return Ia3Spec(tuple(names if regular else modules), tuple(name for name in names if name in feedforward))
