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
from jaxlora.interop import peft_config
from jaxlora.interop.tensors import TensorFiles
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import LoraSize, LoraSpec

_PREFIX = "base_model.model."
_FORMS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter, layer by layer.

    Attributes:
      spec: its size. layers: of the base.
      weights: by full name of the layer: `a: [in, rank]`, `b: [rank, out]`, with DoRA `magnitude: [out]`; of an (IA)^3
        `gain_in: [in]` or `gain_out: [out]`; float32.
      head: `[embed, labels]`, or None.
      belongs: what it belongs to: base and tokenizer (fingerprints), with a head its kind and labels; may lack any.
    """

    spec: LoraSpec | Ia3Spec
    layers: int
    weights: Mapping[str, Mapping[str, np.ndarray]]
    head: np.ndarray | None = None
    belongs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def size(self, module: str) -> LoraSize:
        """The adapter's size in a layer it applies to."""
        return self.spec.size_of(module)


def read(directory: str | Path, shape: LlamaConfig) -> Adapter:
    """Reads a PEFT directory.

    Args:
      shape: of the base.

    Raises:
      UserError: a missing or damaged file, a pickled one, a tensor that is missing, unexpected, of another shape or not
        finite, or a config that cannot be represented.
    """
    directory = Path(directory)
    spec, has_head = peft_config.read_config(directory, shape.layers)
    path = directory / "adapter_model.safetensors"
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
        if plain not in given:
            raise UserError(f"{path} has no tensor {_PREFIX + plain!r}, which adapter_config.json asks for")
        source.check(given[plain], wanted, "adapter_config.json with the base's config.json")
        value = source.read(given.pop(plain)).astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{path}: tensor {_PREFIX + plain!r} holds NaN or infinity; copy it again")
        return value

    weights = {}
    for module, size in spec.sizes(shape.layers).items():
        features_in, features_out = shape.features(module.split(".")[-1])
        here = {"a": take(f"{module}.lora_A.weight", (size.rank, features_in)).T}
        here["b"] = take(f"{module}.lora_B.weight", (features_out, size.rank)).T
        if spec.dora:
            here["magnitude"] = take(f"{module}.lora_magnitude_vector", (features_out,))
        weights[module] = here
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
    directory, tensors = Path(directory), {}
    for module, here in adapter.weights.items():
        for form, leaf in _FORMS.items():
            if leaf in here:
                tensors[f"{_PREFIX}{module}.{form}"] = np.ascontiguousarray(here[leaf].T)
    if adapter.head is not None:
        tensors[f"{_PREFIX}score.weight"] = np.ascontiguousarray(adapter.head.T)
    # With more than this one entry of metadata, safetensors writes them in an order that changes from run to run.
    files.write(directory / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    config = peft_config.to_json(adapter.spec, adapter.layers, adapter.head is not None, base)
    files.write(directory / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    files.write(directory / "jaxlora.json", json.dumps(dict(sorted(adapter.belongs.items())), indent=2) + "\n")


def from_parameters(
    values: Mapping[tuple[str, ...], np.ndarray], name: str, spec: LoraSpec | Ia3Spec, belongs: Mapping[str, Any]
) -> Adapter:
    """Returns adapter `name` of a run's parameters by path, as `checkpoint.load_numpy` gives them, without the head.

    A PiSSA adapter becomes the plain LoRA of twice the rank that it is: [A | A0] [B ; -B0]; an AdaLoRA that of the
    triplets that are left, diag(e) in B.
    """
    own = {path: value for path, value in values.items() if "adapters" in path and path[3] == name}
    layers = len(next(iter(own.values())))
    if isinstance(spec, Ia3Spec):
        gains = {}
        for module in spec.modules(layers):
            layer, part = int(module.split(".")[2]), module.split(".")[-1]
            gains[module] = {path[4]: value[layer] for path, value in own.items() if path[1] == part}
        return Adapter(spec, layers, gains, None, belongs)
    weights, sizes = {}, {}
    for module, size in spec.sizes(layers).items():
        layer, (*_, part) = int(module.split(".")[2]), module.split(".")
        here = {path[4:]: value[layer] for path, value in own.items() if path[1] == part}
        a, b = here["a",][:, : size.rank], here["b",][: size.rank]
        if ("initial", "a") in here:
            a = np.concatenate([a, here["initial", "a"][:, : size.rank]], axis=1)
            b = np.concatenate([b, -here["initial", "b"][: size.rank]])
            alpha = size.alpha * (2**0.5 if size.rslora else 2)  # the scale stays
            size = LoraSize(2 * size.rank, alpha, size.rslora)
        if isinstance(spec, AdaLoraSpec):
            kept = np.flatnonzero(here["e",])
            kept = kept if len(kept) else np.arange(1)  # PEFT has no LoRA of rank 0
            a, b = a[:, kept], (here["e",][:, None] * b)[kept]
            size = LoraSize(len(kept), size.scale * len(kept), False)
        weights[module] = {"a": a, "b": b, **({"magnitude": here["magnitude",]} if spec.dora else {})}
        sizes[module] = size
    plain = peft_config.spec_of_sizes(sizes, layers, spec.dropout, spec.dora)
    return Adapter(plain, layers, weights, None, belongs)


def to_parameters(adapter: Adapter, name: str) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the parameters of adapter `name` by path, stacked over the layers, and the head."""
    values: dict[tuple[str, ...], np.ndarray] = {}
    for part in dict.fromkeys(module.split(".")[-1] for module in adapter.weights):
        here = {int(m.split(".")[2]): w for m, w in adapter.weights.items() if m.endswith(f".{part}")}
        first, widest = next(iter(here.values())), max(w["a"].shape[1] for w in here.values())
        a = np.zeros((adapter.layers, first["a"].shape[0], widest), np.float32)
        b = np.zeros((adapter.layers, widest, first["b"].shape[1]), np.float32)
        magnitude = np.ones((adapter.layers, b.shape[2]), np.float32)
        for layer, w in here.items():
            rank = w["a"].shape[1]
            a[layer, :, :rank], b[layer, :rank] = w["a"], w["b"]
            magnitude[layer] = w.get("magnitude", 1.0)
        path = ("blocks", part, "adapters", name)
        values |= {(*path, "a"): a, (*path, "b"): b}
        if adapter.spec.dora:
            values[*path, "magnitude"] = magnitude
    if adapter.head is not None:
        values["head", "kernel"] = adapter.head
    return values


def _plain(name: str) -> str:
    """A tensor's name as PEFT writes it today, without the prefix; a state dict has the adapter's name in it too."""
    name = re.sub(r"\.default(\.weight)?$", r"\1", name.removeprefix(_PREFIX))
    name = re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", name)
    return "score.weight" if name == "score.modules_to_save.weight" else name


def _read_belongs(directory: Path) -> dict[str, Any]:
    path = directory / "jaxlora.json"
    return files.read_json_object(path, "copy it again, or remove it") if path.exists() else {}
