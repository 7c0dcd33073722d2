"""adapter_config.json of PEFT: what all techniques share, and a LoRA's, to and from `LoraSpec`.

Reading is lenient to what PEFT wrote from 2023 to 2026: a field that is unknown and empty is passed over, one that is
unknown and set is refused by name, since it would change what the adapter computes. Writing gives the few fields that
describe a LoRA, always the same for the same adapter: targets, ranks and alphas are worked out for every layer, and the
shortest config that gives them back is written.
"""

import collections
import contextlib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.models.lora_spec import MODULES, LoraSize, LoraSpec, matches, module_names

# What has no bearing on what an adapter computes.
NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
_READ = {
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
}
# These begin with a change of the base's own weights, so that A and B alone say nothing.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OUTSIDE = ("lm_head", "model.embed_tokens", "embed_tokens")


def raw_config(directory: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns adapter_config.json's path and what it holds.

    Raises:
      UserError: no such file, or not JSON.
    """
    path = Path(directory) / "adapter_config.json"
    if not path.exists():
        raise UserError(f"--adapter: no {path}; give the directory of a PEFT adapter")
    return path, files.read_json_object(path, "copy it again")


@contextlib.contextmanager
def fields_of(path: Path, raw: dict[str, Any]) -> Iterator[None]:
    """Turns what reading a config's fields raises inside the block into a `UserError` that names the file."""
    try:
        yield
    except KeyError as missing:
        raise UserError(f"{path} has no field {missing}; it is not the config of {raw['peft_type']}") from None
    except (TypeError, ValueError, OverflowError, AttributeError, re.error):
        raise UserError(f"{path}: a field is not of its type; copy it again") from None


def read_config(path: Path, raw: dict[str, Any], layers: int) -> LoraSpec:
    """Returns what the adapter_config.json at `path` says of a LoRA.

    Args:
      raw: its fields. layers: of the base.

    Raises:
      UserError: what `LoraSpec` cannot represent, by its name.
    """
    refuse_unknown(path, raw, _READ)
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGE_THE_BASE):
        raise UserError(
            f"{path}: init_lora_weights = {start!r} changed the base's weights too; save the adapter again with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    with fields_of(path, raw):
        modules = targeted(path, raw, layers)
        ranks, alphas = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
        rank, alpha, rslora = raw["r"], raw["lora_alpha"], bool(raw.get("use_rslora"))
        sizes = {}
        for module in modules:
            here = whole(_of_pattern(ranks, module, rank)), float(_of_pattern(alphas, module, alpha))
            sizes[module] = LoraSize(*here, rslora)
        if not all(math.isfinite(size.alpha) for size in sizes.values()):
            raise ValueError
        spec = spec_of_sizes(sizes, layers, float(raw.get("lora_dropout") or 0.0), bool(raw.get("use_dora")))
    spec.check(layers, str(path))
    return spec


def to_json(spec: LoraSpec, layers: int) -> dict[str, Any]:
    """Returns a LoRA's own fields of its adapter_config.json.

    Args:
      layers: of the base.
    """
    spec = spec_of_sizes(spec.sizes(layers), layers, spec.dropout, spec.dora)
    return {
        "alpha_pattern": {pattern: number(alpha) for pattern, alpha in spec.alphas},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": list(spec.layers) or None,
        "lora_alpha": number(spec.alpha),
        "lora_dropout": spec.dropout,
        "r": spec.rank,
        "rank_pattern": dict(spec.ranks),
        "target_modules": list(spec.targets),
        "use_dora": spec.dora,
        "use_rslora": spec.rslora,
    }


def spec_of_sizes(sizes: dict[str, LoraSize], layers: int, dropout: float = 0.0, dora: bool = False) -> LoraSpec:
    """Returns the shortest description of the given sizes, the same for the same sizes.

    Args:
      sizes: by full name of the layer, all of them rsLoRA or none. layers: of the base.
    """
    sizes = {module: sizes[module] for module in module_names(layers) if module in sizes}
    names = [name for name in MODULES if any(module.endswith(f".{name}") for module in sizes)]
    numbers = sorted({int(module.split(".")[2]) for module in sizes})
    regular = len(sizes) == len(names) * len(numbers)
    rank, ranks = _patterns({module: size.rank for module, size in sizes.items()}, names)
    alpha, alphas = _patterns({module: size.alpha for module, size in sizes.items()}, names)
    return LoraSpec(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        targets=tuple(names if regular else sizes),
        layers=tuple(numbers) if regular and len(numbers) < layers else (),
        ranks=ranks,
        alphas=alphas,
        rslora=next(iter(sizes.values())).rslora,
        dora=dora,
    )


def _patterns(values: dict[str, Any], names: list[str]) -> tuple[Any, tuple[tuple[str, Any], ...]]:
    """The most frequent value, and (pattern, value) for the layers that have another."""
    counts = collections.Counter(values.values())
    usual = max(counts, key=lambda value: (counts[value], -value))
    pairs = []
    for name in names:
        here = {module: value for module, value in values.items() if module.endswith(f".{name}")}
        if len(set(here.values())) == 1:
            pairs += [(name, value) for value in set(here.values()) if value != usual]
        else:
            pairs += [(module, value) for module, value in here.items() if value != usual]
    return usual, tuple(pairs)


def refuse_unknown(path: Path, raw: dict[str, Any], known: Collection[str]) -> None:
    """Refuses a field that is set and would change what an adapter computes.

    Args:
      known: the fields that the reader of a technique takes; `NEUTRAL` are passed over.

    Raises:
      UserError: one that is not known, by its name.
    """
    wrong = [field for field in raw if field not in NEUTRAL and field not in known and raw[field]]
    wrong += [field for field, plain in (("bias", "none"), ("fan_in_fan_out", False)) if raw.get(field, plain) != plain]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} = {raw[wrong[0]]!r} cannot be represented; train or save without it")


def targeted(path: Path, raw: dict[str, Any], layers: int, usual: Sequence[str] = ("q_proj", "v_proj")) -> list[str]:
    """Returns the full names of the targeted layers, by PEFT's rules.

    Args:
      usual: PEFT's choice for every model read here, where `target_modules` is empty.

    Raises:
      UserError: they are none, or none that an adapter can be in here.
    """
    targets, excluded = raw.get("target_modules"), raw.get("exclude_modules") or []
    targets = list(usual) if targets is None else targets
    for name in _OUTSIDE:
        if targets != "all-linear" and _in(targets, name) and not _in(excluded, name):
            raise UserError(f"{path}: target_modules = {targets!r} cannot be represented; {name} has no adapter here")
    chosen = raw.get("layers_to_transform")
    chosen = [chosen] if isinstance(chosen, int) else chosen
    pattern = raw.get("layers_pattern") or "layers"
    patterns = [pattern] if isinstance(pattern, str) else pattern
    if chosen and not any(re.match(rf"(.*\.)?{p}\.0\.", module_names(1)[0]) for p in patterns):
        raise UserError(f"{path}: layers_pattern = {pattern!r} matches nothing; the layers are named 'layers'")
    everything = targets == "all-linear"
    modules = [m for m in module_names(layers) if (everything or _in(targets, m)) and not _in(excluded, m)]
    if chosen and not isinstance(targets, str):
        # A layer whose full name is given is taken whatever its number.
        modules = [module for module in modules if module in targets or int(module.split(".")[2]) in chosen]
    if not modules:
        raise UserError(f"{path}: target_modules = {targets!r} matches no layer of the base; is it for another model?")
    return modules


def _in(targets: str | list[str], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _of_pattern(patterns: dict[str, Any], module: str, otherwise: Any) -> Any:
    return next((value for pattern, value in patterns.items() if matches(pattern, module)), otherwise)


def has_head(path: Path, raw: dict[str, Any]) -> bool:
    """Returns whether an adapter has a classification head.

    Raises:
      UserError: it has more than that, or is for another task.
    """
    saved = set(raw.get("modules_to_save") or ())
    if other := saved - {"score", "classifier"}:
        raise UserError(f"{path}: modules_to_save = {sorted(other)!r} cannot be represented; only a head `score` can")
    task = raw.get("task_type")
    if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise UserError(f"{path}: task_type = {task!r} is not supported; CAUSAL_LM and SEQ_CLS are")
    return task == "SEQ_CLS" or "score" in saved


def whole(value: Any) -> int:
    """Returns a whole number of a config; raises ValueError or TypeError where it is none."""
    if isinstance(value, str) or int(value) != value:
        raise ValueError
    return int(value)


def number(value: float) -> int | float:
    """Returns a number as JSON has it best: 8 and not 8.0."""
    return int(value) if value == int(value) else value
