"""What `--scale=demo` runs on: a generated cohort and small bases, made once and on the spot."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxlora import files, workers
from jaxlora.config import default
from jaxlora.data import synthetic, tables
from jaxlora.data.prepare import prepare
from jaxlora.reproduce.tables import BASES
from jaxlora.small_base import make_base

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def set_up(config: ConfigDict, folder: Path, kinds: set[str], llamas: tuple[str, ...]) -> None:
    """Makes the cohort, prepares it, and makes the bases that are missing; sets what they change in the config.

    Each LLaMA is pretrained on plain English from a seed of its own, each encoder has random weights.

    Args:
      config: of `configs/reproduce.py`; changed.
      kinds: of the bases that are needed, "llama" and "encoder". llamas: which LLaMAs are.
    """
    sizes, cohort = config.demo, folder / "cohort"
    config.dtype, config.remat, config.clip = "float32", "none", 1.0
    config.data.length, config.split.test = sizes.length, sizes.test
    if not cohort.exists():
        synthetic.synthesize("mimic3", cohort, sizes.patients, config.seed, compressed=False, workers=1)
    config.mimic3, config.mimic4, config.data.dir = str(cohort), "", str(folder / "data")
    prepare(config, folder / "data")
    jobs = {}
    for number, name in enumerate(name for name, base in BASES.items() if base.kind == "llama"):
        place = folder / name
        if name in llamas:
            config.bases[name] = str(place / "pretrained")
            if not (place / "pretrained" / "config.json").exists():
                jobs[name] = (_base_config(config, number), place)
    for _ in workers.run_all(make_base, jobs):
        pass
    if "encoder" in kinds:
        for number, name in enumerate(name for name, base in BASES.items() if base.kind == "encoder"):
            config.bases[name] = str(folder / name)
            if not (folder / name / "config.json").exists():
                write_bert(folder / name, _words(cohort), sizes.bert, config.seed + number)


def _base_config(config: ConfigDict, number: int) -> ConfigDict:
    made = default()
    made.seed, made.clip, made.data.length = config.seed + number, config.clip, config.data.length
    made.demo = ConfigDict({"base": config.demo.base})
    return made


def _words(cohort: Path) -> list[str]:
    """Returns the words of the cohort's notes in small letters, the most frequent first; of three notes or more."""
    counts: Counter[str] = Counter()
    for _, cells in tables.rows(cohort / "NOTEEVENTS.csv", ("TEXT",)):
        counts.update(set(re.findall(r"[a-z]+|[^\sa-z]", (cells["TEXT"] or "").lower())))
    return [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count > 2]


def write_bert(folder: Path, words: list[str], sizes: ConfigDict, seed: int) -> None:
    """Writes a Hugging Face BERT of random weights: `config.json`, `model.safetensors`, `vocab.txt`.

    Args:
      words: of its vocabulary, the most frequent first; beside them are letters and digits, alone and as parts.
      sizes: vocab, embed, mlp, layers, heads.
    """
    from safetensors.numpy import save

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word for word in words if word not in set(pieces)][: sizes.vocab - len(pieces)]
    embed, rng, tensors = sizes.embed, np.random.default_rng(seed), {}

    def dense(name: str, out: int, inner: int) -> None:
        tensors[f"{name}.weight"] = rng.normal(scale=0.02, size=(out, inner)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(out, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(embed, np.float32), np.zeros(embed, np.float32)

    for name, rows in (("word", len(pieces)), ("position", 512), ("token_type", 2)):
        table = rng.normal(scale=0.02, size=(rows, embed)).astype(np.float32)
        tensors[f"bert.embeddings.{name}_embeddings.weight"] = table
    norm("bert.embeddings.LayerNorm")
    for number in range(sizes.layers):
        layer = f"bert.encoder.layer.{number}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            dense(f"{layer}.{name}", embed, embed)
        dense(f"{layer}.intermediate.dense", sizes.mlp, embed)
        dense(f"{layer}.output.dense", embed, sizes.mlp)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    dense("bert.pooler.dense", embed, embed)
    files.write(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    files.write(folder / "vocab.txt", "\n".join(pieces) + "\n")
    files.write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    about = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": len(pieces)}
    about |= {"hidden_size": embed, "intermediate_size": sizes.mlp, "num_hidden_layers": sizes.layers}
    about |= {"num_attention_heads": sizes.heads, "max_position_embeddings": 512, "type_vocab_size": 2}
    about |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    files.write_json(folder / "config.json", about | {"layer_norm_eps": 1e-12, "pad_token_id": 0})
