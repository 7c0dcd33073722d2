"""Adapters merged into their base, written as a Hugging Face directory."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlora.errors import UserError
from jaxlora.interop.llama_config import ARCHITECTURES, read_json
from jaxlora.interop.peft import Adapter
from jaxlora.interop.tensors import DTYPES, model_files, write_sharded

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def write_merged(
    directory: Path,
    base: str | Path,
    adapters: Sequence[Adapter],
    head: np.ndarray | None,
    kind: str,
    labels: Sequence[str],
    pad: int | None,
    trained: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the base with the adapters merged in, sharded, with the tokenizer, as a Hugging Face directory.

    A targeted weight is computed in float32 and cast once, to the dtype it is stored in; every other tensor is copied.
    A base that was trained is written in the float32 that it was trained in.

    Args:
      directory: an empty one.
      adapters: all of them active.
      head: `[embed, labels]`, makes it a model for sequence classification.
      kind, labels: of the head. pad: the padding token, which transformers needs to find a note's last token.
      trained: tensors that take the place of the base's.

    Raises:
      UserError: a sum is too large for the dtype.
    """
    base, source, trained = Path(base), model_files(base), trained or {}
    names = [name for name in source.names if head is None or name not in ("lm_head.weight", "score.weight")]
    sizes = {name: trained[name].nbytes if name in trained else source.bytes(name) for name in names}
    stored = np.dtype(np.float32) if trained else DTYPES[source.dtype("model.embed_tokens.weight")]
    if head is not None:
        sizes["score.weight"] = head.size * stored.itemsize

    def make(name: str) -> np.ndarray:
        if name == "score.weight" and head is not None:
            return np.ascontiguousarray(head.T).astype(stored)
        module, _, leaf = name.rpartition(".")
        here = [adapter for adapter in adapters if module in adapter.weights]
        weight = trained[name] if name in trained else source.read(name)
        if not here:
            return weight
        of_leaf = merged if leaf == "weight" else merged_bias
        with np.errstate(over="ignore"):  # told below
            cast = of_leaf(weight.astype(np.float32), here, module).astype(weight.dtype)
        if not np.isfinite(cast).all():
            raise UserError(
                f"tensor {name!r} with the adapters overflows {weight.dtype}, as the base is stored; convert the "
                "base to bfloat16 or float32 first"
            )
        return cast

    write_sharded(directory, sizes, make)
    config = _config(read_json(base), head is not None, kind, labels, pad)
    if trained:  # else transformers rounds the weights to the dtype of those that they were trained from
        config = {field: value for field, value in config.items() if field not in ("dtype", "torch_dtype")}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    kept = TOKENIZER_FILES if head is not None else (*TOKENIZER_FILES, "generation_config.json")
    for name in kept:
        if (base / name).exists():
            shutil.copyfile(base / name, directory / name)


def merged(weight: np.ndarray, adapters: Sequence[Adapter], module: str) -> np.ndarray:
    """Returns `weight: [out, in]` of a layer with the adapters merged in, float32; see `models/lora.py` for the sum."""
    total, gain = np.zeros_like(weight), np.ones(len(weight), np.float32)
    for adapter in adapters:
        here = adapter.weights[module]
        if "a" not in here:
            continue
        a, b = adapter.factors(module)
        added = np.float32(adapter.size(module).scale) * (b.T @ a.T)
        if "magnitude" in here:
            stretch = here["magnitude"] / np.linalg.norm(weight + added, axis=1)
            gain += stretch - 1
            added *= stretch[:, None]
        total += added
    into, out = (_product(adapters, module, side) for side in ("gain_in", "gain_out"))
    return (gain * out)[:, None] * weight * into + total


def merged_bias(bias: np.ndarray, adapters: Sequence[Adapter], module: str) -> np.ndarray:
    """Returns `bias: [out]` of a layer with the adapters merged in, float32: an (IA)^3 scales it with the output."""
    return bias * _product(adapters, module, "gain_out")


def _product(adapters: Sequence[Adapter], module: str, side: str) -> np.ndarray:
    """The product of the (IA)^3 vectors of one side of a layer, 1 where there is none."""
    return math.prod((x.weights[module][side] for x in adapters if side in x.weights[module]), start=np.float32(1))


def _config(raw: dict[str, Any], head: bool, kind: str, labels: Sequence[str], pad: int | None) -> dict[str, Any]:
    raw = {field: value for field, value in raw.items() if field != "_name_or_path"}  # a path tells who you are
    if not head:
        return raw
    names = {str(i): label for i, label in enumerate(labels)}
    return {
        **raw,
        "architectures": [f"{ARCHITECTURES[raw['model_type']]}ForSequenceClassification"],
        "id2label": names,
        "label2id": {label: int(i) for i, label in names.items()},
        "num_labels": len(labels),
        "pad_token_id": raw["pad_token_id"] if raw.get("pad_token_id") is not None else pad,
        "problem_type": "multi_label_classification" if kind == "multilabel" else "single_label_classification",
    }
