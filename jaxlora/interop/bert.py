"""BERT directories of Hugging Face: config.json, and the tensors under one set of names.

The clinical BERTs are old. Their config.json may lack `model_type`, their weights may be a `pytorch_model.bin` or a
`flax_model.msgpack` alone, the norms in them may be called gamma and beta, and all names may begin with `bert.` or not.
What a plain BERT does not have is left out: the heads of pretraining, and what an encoder adds of its own, such as the
semantic types of UmlsBERT, which transformers' BertModel leaves out too.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from jaxlora.errors import UserError
from jaxlora.interop.llama_config import read_json
from jaxlora.interop.pickled import read_tensors
from jaxlora.interop.place import Path_
from jaxlora.interop.tensors import INDEX, TensorFiles, model_files
from jaxlora.models.bert import BertConfig
from jaxlora.models.lora_spec import BERT_MODULES

_ALONE = {
    ("embedding", "word"): "embeddings.word_embeddings.weight",
    ("embedding", "position"): "embeddings.position_embeddings.weight",
    ("embedding", "type"): "embeddings.token_type_embeddings.weight",
    ("embedding", "norm", "scale"): "embeddings.LayerNorm.weight",
    ("embedding", "norm", "bias"): "embeddings.LayerNorm.bias",
    ("pooler", "kernel"): "pooler.dense.weight",
    ("pooler", "bias"): "pooler.dense.bias",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}
_OLD = {"gamma": "weight", "beta": "bias"}
# Heads of pretraining and of other tasks, and positions by their number: nobody misses them.
_USUAL = re.compile(r"(cls|classifier|qa_outputs|dropout)\..*|embeddings\.position_ids")
_PICKLED, _FLAX = "pytorch_model.bin", "flax_model.msgpack"
# Flax: PyTorch. A kernel is a weight, transposed.
_OF_FLAX = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_LAYERS = 1000  # more than any; a damaged number would have us look for so many tensors


def is_bert(raw: dict[str, Any]) -> bool:
    """Returns whether a config.json is a BERT's; old ones name no model, but the kinds of segments that BERT has."""
    return raw.get("model_type", "bert" if "type_vocab_size" in raw else "") == "bert"


def read_config(directory: str | Path) -> BertConfig:
    """Reads config.json of a BERT.

    Raises:
      UserError: no such file, not JSON, a missing field, or a feature that this model does not compute.
    """
    path, raw = Path(directory) / "config.json", read_json(directory)
    unsupported = {
        "hidden_act": raw.get("hidden_act", "gelu") != "gelu",
        "position_embedding_type": raw.get("position_embedding_type", "absolute") != "absolute",
        "is_decoder": bool(raw.get("is_decoder")),
        "add_cross_attention": bool(raw.get("add_cross_attention")),
        "quantization_config": bool(raw.get("quantization_config")),
    }
    for field, wrong in unsupported.items():
        if wrong:
            raise UserError(f"{path}: {field} = {raw.get(field)!r} is not supported; this model is not computed here")
    try:
        dropout = float(raw.get("hidden_dropout_prob", 0.1))
        of_head = raw.get("classifier_dropout")
        config = BertConfig(
            vocab=int(raw["vocab_size"]),
            embed=int(raw["hidden_size"]),
            mlp=int(raw["intermediate_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=int(raw["num_attention_heads"]),
            positions=int(raw.get("max_position_embeddings", 512)),
            types=int(raw.get("type_vocab_size", 2)),
            epsilon=float(raw.get("layer_norm_eps", 1e-12)),
            dropout=dropout,
            attention_dropout=float(raw.get("attention_probs_dropout_prob", 0.1)),
            head_dropout=dropout if of_head is None else float(of_head),
        )
        _check_possible(config)
        return config
    except KeyError as missing:
        raise UserError(f"{path} has no field {missing}; it is not the config.json of a BERT") from None
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: a size is no number or impossible; this is no config.json of a BERT, download it again"
        ) from None


def _check_possible(c: BertConfig) -> None:
    """Raises ValueError where a number cannot be a BERT's."""
    sizes = (c.vocab, c.embed, c.mlp, c.layers, c.heads, c.positions, c.types)
    if min(sizes) < 1 or c.layers > _LAYERS or c.embed % c.heads or not 0 < c.epsilon < math.inf:
        raise ValueError
    if not all(0 <= rate < 1 for rate in (c.dropout, c.attention_dropout, c.head_dropout)):
        raise ValueError


def tensor_names(path: Path_, layers: int) -> list[str]:
    """Returns the names of the tensors that make up the parameter at `path`, one a layer, or one alone."""
    if path[0] != "blocks":
        return [_ALONE[path]]
    _, part, leaf = path
    suffix = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
    module = _NORMS.get(part) or BERT_MODULES[part]
    return [f"encoder.layer.{i}.{module}.{suffix}" for i in range(layers)]


def tensors(directory: str | Path, shape: BertConfig) -> TensorFiles:
    """Returns the tensors of a BERT by the names that `tensor_names` gives.

    A pooler that is missing, as where a BERT was pretrained on words alone, is a fresh one, the same every time: a
    checkpoint of a run that keeps it frozen does not hold it.

    Raises:
      UserError: no weights, or damaged ones.
    """
    directory = Path(directory)
    safe = (directory / "model.safetensors").exists() or (directory / INDEX).exists()
    other = next((directory / name for name in (_PICKLED, _FLAX) if (directory / name).exists()), None)
    if safe or other is None:
        found = model_files(directory, plain_name)
    else:
        found = TensorFiles([])
        for stored, value in (read_tensors if other.name == _PICKLED else _of_flax)(other).items():
            if name := plain_name(stored):
                found.add(name, value, other)
            else:
                found.left_out.append(stored)
    kernel, bias = _ALONE["pooler", "kernel"], _ALONE["pooler", "bias"]
    if kernel not in found.names and bias not in found.names:
        weights = 0.02 * np.random.default_rng(0).standard_normal((shape.embed, shape.embed))
        found.add(kernel, weights.astype(np.float32), directory)
        found.add(bias, np.zeros(shape.embed, np.float32), directory)
    return found


def left_out(found: TensorFiles) -> list[str]:
    """Returns the tensors of a BERT that no BERT has and no pretraining leaves behind, by their names in the files."""
    return sorted(name for name in found.left_out if not _USUAL.fullmatch(name.removeprefix("bert.")))


def plain_name(stored: str) -> str | None:
    """Returns the name of a tensor without the old spellings, None for one that a BERT does not have."""
    name = stored.removeprefix("bert.")
    module, _, leaf = name.rpartition(".")
    name = f"{module}.{_OLD.get(leaf, leaf)}" if module.endswith("LayerNorm") else name
    # A layer too many is a config.json of another model, which is told where the tensors find their places.
    return name if name in _ALONE.values() or name.startswith("encoder.layer.") else None


def _of_flax(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model of Flax by the names that PyTorch's has."""
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        leaves = dict(_leaves(tree, ()))
        return {
            ".".join((*names[:-1], _OF_FLAX.get(names[-1], names[-1]))): x.T if names[-1] == "kernel" else x
            for names, x in leaves.items()
        }
    except Exception as error:  # the reader raises whatever its parser raises
        raise UserError(
            f"{path} is not a readable file of weights ({type(error).__name__}); download it again"
        ) from None


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), np.asarray(value)
