"""PEFT adapter directories, in and out: adapter_config.json, adapter_model.safetensors, and beside them jaxlora.json,
which says what the adapter belongs to."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.interop import peft_config, peft_prompts
from jaxlora.interop.peft_forms import FORMS, READ, turned
from jaxlora.interop.tensors import TensorFiles
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import LoraSize, LoraSpec
from jaxlora.models.prompt_spec import PrefixSpec, PromptFamily, PromptSpec
from jaxlora.models.techniques import Spec

_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter, layer by layer.

    Attributes:
      spec: its size. layers: of the base.
      weights: by full name of the layer, float32: `a: [in, rank]`, `b: [rank, out]`, with DoRA `magnitude: [out]`, of
        an AdaLoRA `e: [rank]`; of an (IA)^3 `gain_in: [in]` or `gain_out: [out]`; of an adaptation prompt
        `prompt: [length, embed]` and `gate: []`. Of virtual tokens, `table` of the one name `peft_prompts.TOKENS`.
      head: `[embed, labels]`, or None.
      belongs: what it belongs to: base and tokenizer (fingerprints), with a head its kind and labels; may lack any.
    """

    spec: Spec
    layers: int
    weights: Mapping[str, Mapping[str, np.ndarray]]
    head: np.ndarray | None = None
    belongs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def size(self, module: str) -> LoraSize:
        """The adapter's size in a layer it applies to, of a LoRA or an AdaLoRA."""
        return self.spec.size_of(module)

    def factors(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """A and B of a LoRA in a layer; of an AdaLoRA those of the triplets that are left, diag(e) in B."""
        here = self.weights[module]
        if "e" not in here:
            return here["a"], here["b"]
        kept = np.flatnonzero(here["e"])
        kept = kept if len(kept) else np.arange(1)  # there is no LoRA of rank 0
        return here["a"][:, kept], (here["e"][:, None] * here["b"])[kept]


def read_config(directory: str | Path, shape: LlamaConfig) -> tuple[dict[str, Any], Spec, bool]:
    """Reads adapter_config.json.

    Args:
      shape: of the base.

    Returns:
      (its fields, the adapter's description, whether it has a classification head).

    Raises:
      UserError: no such file, not JSON, or what cannot be represented, by its name.
    """
    path, raw = peft_config.raw_config(directory)
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in READ:
        raise UserError(f"{path}: peft_type = {kind!r} is not supported; known are {', '.join(READ)}")
    spec = READ[kind].read(path, raw, shape)
    with peft_config.fields_of(path, raw):
        return raw, spec, peft_config.has_head(path, raw) and READ[kind].headed


def to_json(adapter: Adapter, base: str) -> dict[str, Any]:
    """Returns the adapter_config.json of an adapter; `base` is a name of the base."""
    form, headed = FORMS[type(adapter.spec)], adapter.head is not None
    config = form.fields(adapter) | {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "peft_type": form.peft_type,
        "task_type": "SEQ_CLS" if headed else "CAUSAL_LM",
    }
    if form.headed:
        config["modules_to_save"] = ["score"] if headed else None
    return dict(sorted(config.items()))


def read(directory: str | Path, shape: LlamaConfig) -> Adapter:
    """Reads a PEFT directory.

    Args:
      shape: of the base.

    Raises:
      UserError: a missing or damaged file, a pickled one, a tensor that is missing, unexpected, of another shape or not
        finite, or a config that cannot be represented.
    """
    directory = Path(directory)
    raw, spec, has_head = read_config(directory, shape)
    form, path = READ[raw["peft_type"]], directory / "adapter_model.safetensors"
    if not path.exists() and (directory / "adapter_model.bin").exists():
        raise UserError(
            f"{directory} has only a pickled adapter_model.bin, which is never loaded; load it once in PEFT, where you "
            "trust it, and save_pretrained it again"
        )
    source = TensorFiles([path])
    given: dict[str, str] = {}
    for name in source.names:
        plain = _plain(name)
        if plain in given:
            raise UserError(f"{path}: {name!r} and {given[plain]!r} are the same tensor; remove one")
        given[plain] = name

    def take(plain: str, wanted: tuple[int, ...]) -> np.ndarray:
        name = _full(plain, spec)
        if plain not in given:
            raise UserError(f"{path} has no tensor {name!r}, which adapter_config.json asks for")
        source.check(given[plain], wanted, "adapter_config.json with the base's config.json")
        value = source.read(given.pop(plain)).astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{path}: tensor {name!r} holds NaN or infinity; copy it again")
        return value

    weights = {}
    for module, leaves in form.shapes(spec, shape, raw).items():
        here = {}
        for leaf, own in leaves.items():
            end, lying = form.files[leaf]
            with peft_config.fields_of(directory / "adapter_config.json", raw):
                wanted = lying(np.broadcast_to(False, own)).shape  # takes no memory, however large a damaged number is
            value = take(_joined(module, end), wanted)
            here[leaf] = value.T if lying is turned else value.reshape(own)
        weights[module] = form.completed(spec, here)
    head = None
    if has_head:
        found = source.shape(given["score.weight"]) if "score.weight" in given else ()
        head = take("score.weight", (max((1, *found[:1])), shape.embed)).T
    if given:
        name = next(iter(given.values()))
        raise UserError(f"{path}: tensor {name!r} has no place in the adapter that adapter_config.json describes")
    return Adapter(spec, shape.layers, weights, head, _read_belongs(directory))


def write(directory: str | Path, adapter: Adapter, base: str) -> None:
    """Writes a PEFT directory, float32, byte for byte the same for the same adapter.

    Args:
      base: a name of the base, for `base_model_name_or_path`; a path of yours would tell who you are.
    """
    directory, form, tensors = Path(directory), FORMS[type(adapter.spec)], {}
    for module, here in adapter.weights.items():
        for leaf, value in here.items():
            end, lying = form.files[leaf]
            tensors[_full(_joined(module, end), adapter.spec)] = np.ascontiguousarray(lying(value))
    if adapter.head is not None:
        tensors[_full("score.weight", adapter.spec)] = np.ascontiguousarray(adapter.head.T)
    # With more than this one entry of metadata, safetensors writes them in an order that changes from run to run.
    files.write(directory / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    files.write(directory / "adapter_config.json", json.dumps(to_json(adapter, base), indent=2) + "\n")
    files.write(directory / "jaxlora.json", json.dumps(dict(sorted(adapter.belongs.items())), indent=2) + "\n")


def keeps_head(spec: Spec) -> bool:
    """Returns whether PEFT saves a classification head with an adapter."""
    return FORMS[type(spec)].headed


def from_parameters(
    values: Mapping[tuple[str, ...], np.ndarray],
    name: str,
    spec: Spec,
    belongs: Mapping[str, Any],
    shape: LlamaConfig | None = None,
) -> Adapter:
    """Returns adapter `name` of a run's parameters by path, as `checkpoint.load_numpy` gives them, without the head.

    A PiSSA adapter becomes the plain LoRA of twice the rank that it is: [A | A0] [B ; -B0]; virtual tokens that a
    network makes become what it makes of them.

    Args:
      shape: of the base, for the techniques of `prompt_spec`, whose parameters do not tell it.
    """
    if isinstance(spec, PromptFamily):
        plain, weights = peft_prompts.from_parameters(values, name, spec, shape)
        return Adapter(plain, shape.layers, weights, None, belongs)
    own = {path: value for path, value in values.items() if path[2:4] == ("adapters", name)}
    layers = len(next(iter(own.values())))
    modules = spec.modules(layers) if isinstance(spec, Ia3Spec) else spec.sizes(layers)
    weights, sizes = {}, {}
    for module in modules:
        layer, (*_, part) = int(module.split(".")[2]), module.split(".")
        here = {path[4:]: value[layer] for path, value in own.items() if path[1] == part}
        if type(spec) is LoraSpec:
            weights[module], sizes[module] = _lora(here, spec.size_of(module))
        else:
            weights[module] = {leaf: value for (leaf,), value in here.items()}
    if sizes:
        spec = peft_config.spec_of_sizes(sizes, layers, spec.dropout, spec.dora)
    return Adapter(spec, layers, weights, None, belongs)


def _lora(here: Mapping[tuple[str, ...], np.ndarray], size: LoraSize) -> tuple[dict[str, np.ndarray], LoraSize]:
    """A LoRA of one layer from its parameters, without the columns beyond its rank, and its size."""
    a, b = here["a",][:, : size.rank], here["b",][: size.rank]
    if ("initial", "a") in here:
        a = np.concatenate([a, here["initial", "a"][:, : size.rank]], axis=1)
        b = np.concatenate([b, -here["initial", "b"][: size.rank]])
        alpha = size.alpha * (2**0.5 if size.rslora else 2)  # the scale stays
        size = LoraSize(2 * size.rank, alpha, size.rslora)
    return {"a": a, "b": b} | {leaf[0]: here[leaf] for leaf in [("magnitude",)] if leaf in here}, size


# A layer without the adapter changes nothing.
_ABSENT = {"magnitude": 1.0, "gain_in": 1.0, "gain_out": 1.0}


def to_parameters(adapter: Adapter, name: str) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the parameters of adapter `name` by path, stacked over the layers, and the head."""
    values: dict[tuple[str, ...], np.ndarray] = {}
    if isinstance(adapter.spec, PromptFamily):
        values = peft_prompts.to_parameters(adapter.weights, adapter.spec, name)
    else:
        for part in dict.fromkeys(module.split(".")[-1] for module in adapter.weights):
            here = {int(m.split(".")[2]): w for m, w in adapter.weights.items() if m.endswith(f".{part}")}
            for leaf in next(iter(here.values())):
                widest = np.max([w[leaf].shape for w in here.values()], axis=0)
                stack = np.full((adapter.layers, *widest), _ABSENT.get(leaf, 0.0), np.float32)
                for layer, w in here.items():
                    stack[(layer, *(slice(n) for n in w[leaf].shape))] = w[leaf]
                values["blocks", part, "adapters", name, leaf] = stack
    if adapter.head is not None:
        values["head", "kernel"] = adapter.head
    return values


def _joined(module: str, end: str) -> str:
    return f"{module}.{end}" if end else module


def _full(plain: str, spec: Spec) -> str:
    """A tensor's name as PEFT writes it; virtual tokens leave the base as it is, and their names too."""
    if plain == peft_prompts.TOKENS:
        return plain
    return f"base_model.{plain}" if isinstance(spec, PrefixSpec | PromptSpec) else _PREFIX + plain


def _plain(name: str) -> str:
    """A tensor's name as PEFT writes it today, without the prefix; a state dict has the adapter's name in it too."""
    name = re.sub(r"\.default(\.weight)?$", r"\1", re.sub(r"^base_model\.(model\.)?", "", name))
    name = re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", name)
    return "score.weight" if name == "score.modules_to_save.weight" else name


def _read_belongs(directory: Path) -> dict[str, Any]:
    path = directory / "jaxlora.json"
    return files.read_json_object(path, "copy it again, or remove it") if path.exists() else {}
