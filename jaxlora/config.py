"""Every field a config can have, with its default; `configs/*.py` change a few of them."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxlora.mesh_rules import RULES


def default() -> ConfigDict:
    """Returns the default configuration; unknown fields are refused by ml_collections."""
    config = ConfigDict()
    config.seed = 0
    config.base = ""  # Hugging Face directory of a LLaMA or a BERT

    # What `prepare` reads: `datasets` from your own tables, and the folders of the tables of MIMIC.
    config.datasets = ConfigDict()  # name -> dataset(...) or native(...)
    config.mimic3 = ""
    config.mimic4 = ""  # hosp/ and icu/
    config.mimic4_note = ""  # note/, if it is not there too
    config.mode = "correct"  # or "paper": as the published scripts do, for comparison
    config.split = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})  # shares of the patients
    config.core_splits = ""  # the folder of the published mimic_{train,val,test}.csv, instead of shares
    config.beep = ""  # BEEP's pmv_labels.pkl, instead of deriving ventilation from the tables
    config.gem = ""  # a general equivalence mapping from ICD-10-CM to ICD-9-CM
    config.gem_procedures = ""  # the same from ICD-10-PCS
    config.corpus = ConfigDict()  # what becomes of a note in the corpora; `data/corpus.py` says what each means
    config.corpus.deid = "keep"
    config.corpus.join_lines = False
    config.corpus.dedupe = True
    config.corpus.split = "patient"
    config.corpus.exclude = ""  # a file of hashes, such as `audit` writes

    # What `train` and `evaluate` read: the folder `prepare` wrote, and the dataset in it.
    config.data = ConfigDict()
    config.data.dir = ""
    config.data.name = ""
    config.data.mix = ()  # further corpora and their weights: (("clinical_corpus/mimic3", 0.5), ...)
    config.data.length = 512  # tokens a packed row
    config.data.long_notes = "truncate"  # keep the first tokens (the paper), or "chunk": keep all of them

    # One row of the paper's tables: which adapters exist, which are active, what is trainable.
    config.adapters = ConfigDict()  # name -> adapter(...)
    config.active = ()
    config.trainable = ()

    config.learning_rate = 3e-4
    config.b_rate = 1.0  # learning rate of every B over that of every A (LoRA+: 16)
    config.batch_size = 16  # packed rows an update, over all devices
    config.epochs = 1
    config.warmup = 0.06  # share of the updates
    config.decay = "linear"  # to zero after the warm-up, "constant", or "paper": as the published code did
    # Of decay "paper" alone: micro-batches of an update there. It is part of what is computed, while `accumulate` is a
    # matter of memory, which a run that goes on may change.
    config.paper_accumulate = 1
    config.weight_decay = 0.01
    config.clip = 0.0  # global gradient norm; 0 does not clip
    config.class_weights = True  # weight classes by N / (K n_c), as the paper does
    config.evaluations = 1  # validations (and checkpoints) an epoch
    config.select = "best"  # the checkpoint `evaluate` takes: best on validation, or "last"

    config.dtype = "float32"  # of the computation; "bfloat16" on accelerators
    config.quantize = ""  # the base's kernels as "int8" or "nf4"
    config.remat = "none"  # "full", "save_qkv", "offload", "save_dots", "none": from little memory to little work
    config.accumulate = 1  # parts in which the rows of an update go through the model, one after the other
    config.loss_chunk = 512  # positions of a row whose logits exist at one time
    config.attention = ConfigDict({"kernel": "auto", "block": 512})  # "splash" (TPU), "cudnn" (GPU), "xla"
    config.mesh = ConfigDict({"fsdp": 0, "tensor": 1})  # fsdp 0: the least that fits; the other devices are `data`
    config.mesh.rules = ConfigDict(RULES)

    config.keep = ConfigDict({"last": 2, "best": 1})  # checkpoints that stay
    config.wandb = ""  # the Weights & Biases project to log to; "" logs to no one
    config.sweep = ()  # what `sweep` varies, a run each: (("a name", {"learning_rate": 1e-3}), ...)
    # Or what `sweep` looks for: the settings with the best validation. `search/space.py` says what a space is.
    config.search = ConfigDict()
    config.search.method = ""  # "grid", "random" or "bayes"; "" trains the list above
    config.search.space = ()  # (("learning_rate", ("log", 1e-5, 1e-3)), ("adapters.downstream.rank", (2, 4, 8)), ...)
    config.search.budget = 20  # trials
    config.search.together = 4  # trials of one program, and what "bayes" suggests at a time
    config.search.seed = 0
    return config


def drops_out(config: ConfigDict, base_does: bool) -> bool:
    """Returns whether an active adapter of a config has dropout, or the base itself, so that an update draws masks."""
    return base_does or any(config.adapters[name].get("dropout", 0.0) for name in config.active)


def virtual_tokens(config: ConfigDict) -> int:
    """Returns how many virtual tokens the active adapters of a config put in front of every note."""
    return sum(config.adapters[name].get("virtual_tokens", 0) for name in config.active if name in config.adapters)


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a config by their dotted names, tuples as lists."""
    result = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            result.update(flat(value, f"{prefix}{name}."))
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def wrong_field(config: Mapping) -> str:
    """Returns which field of a config is missing or of another type, and what it should be; "" where none is."""
    found = flat(config)
    for field, value in flat(default()).items():
        kind = {float: int | float}.get(type(value), type(value))
        if not isinstance(found.get(field), kind):
            return f"{field} is missing or no {'tuple' if kind is list else type(value).__name__}"
    return ""


def field_of(config: ConfigDict, field: str) -> Any:
    """Returns a field by its dotted name."""
    for name in field.split("."):
        config = config[name]
    return config


def adapter(
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    workdir: str = "",
    layers: tuple[int, ...] = (),
    ranks: tuple[tuple[str, int], ...] = (),
    alphas: tuple[tuple[str, float], ...] = (),
    rslora: bool = False,
    dora: bool = False,
    init: str = "lora",
) -> ConfigDict:
    """Returns the description of one LoRA, or of its kin; `models/lora_spec.py` says what each field means.

    Args:
      workdir: the run it is restored from; "" starts it anew.
    """
    return ConfigDict(
        {
            "rank": rank,
            "alpha": float(alpha),
            "dropout": float(dropout),
            "targets": tuple(targets),
            "workdir": workdir,
            "layers": tuple(layers),
            "ranks": tuple(ranks),
            "alphas": tuple(alphas),
            "rslora": rslora,
            "dora": dora,
            "init": init,
        }
    )


def adalora(
    rank: int = 12,
    target_rank: int = 8,
    alpha: float = 8,
    dropout: float = 0.0,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    workdir: str = "",
    layers: tuple[int, ...] = (),
    start: int = 0,
    end: int = 0,
    interval: int = 1,
    beta1: float = 0.85,
    beta2: float = 0.85,
    orthogonality: float = 0.5,
) -> ConfigDict:
    """Returns the description of one AdaLoRA, with PEFT's defaults; `models/adalora.py` says what each field means.

    Args:
      workdir: the run it is restored from; "" starts it anew.
    """
    numbers = {"alpha": alpha, "dropout": dropout, "beta1": beta1, "beta2": beta2, "orthogonality": orthogonality}
    return ConfigDict(
        {
            "technique": "adalora",
            "rank": rank,
            "target_rank": target_rank,
            "targets": tuple(targets),
            "layers": tuple(layers),
            "start": start,
            "end": end,
            "interval": interval,
            "workdir": workdir,
            **{name: float(value) for name, value in numbers.items()},
        }
    )


def ia3(
    targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj"),
    feedforward: tuple[str, ...] = ("down_proj",),
    workdir: str = "",
) -> ConfigDict:
    """Returns the description of one (IA)^3, with PEFT's defaults for LLaMA; `models/ia3.py` says what it computes.

    Args:
      workdir: the run it is restored from; "" starts it anew.
    """
    return ConfigDict(
        {"technique": "ia3", "targets": tuple(targets), "feedforward": tuple(feedforward), "workdir": workdir}
    )


def prefix(virtual_tokens: int, projection: bool = False, hidden: int = 0, workdir: str = "") -> ConfigDict:
    """Returns the description of an adapter of prefix tuning; `models/prompt_spec.py` says what each field means, of
    this and of the next three.

    Args:
      workdir: the run it is restored from; "" starts it anew.
    """
    fields = {"virtual_tokens": virtual_tokens, "projection": projection, "hidden": hidden}
    return ConfigDict({"technique": "prefix", **fields, "workdir": workdir})


def prompt(
    virtual_tokens: int, init: str = "random", text: str = "Finish this clinical note: ", workdir: str = ""
) -> ConfigDict:
    """Returns the description of an adapter of prompt tuning."""
    fields = {"virtual_tokens": virtual_tokens, "init": init, "text": text}
    return ConfigDict({"technique": "prompt", **fields, "workdir": workdir})


def p_tuning(
    virtual_tokens: int,
    encoder: str = "lstm",
    hidden: int = 256,
    layers: int = 4,
    dropout: float = 0.0,
    workdir: str = "",
) -> ConfigDict:
    """Returns the description of an adapter of P-tuning."""
    sizes = {"encoder": encoder, "hidden": hidden, "layers": layers, "dropout": float(dropout)}
    return ConfigDict({"technique": "p_tuning", "virtual_tokens": virtual_tokens, **sizes, "workdir": workdir})


def adaptation_prompt(length: int, layers: int, workdir: str = "") -> ConfigDict:
    """Returns the description of an adaptation prompt."""
    return ConfigDict({"technique": "adaptation_prompt", "length": length, "layers": layers, "workdir": workdir})


def dataset(kind: str, labels: tuple[str, ...] = (), **tables: ConfigDict) -> ConfigDict:
    """Returns the description of one dataset for `prepare`.

    Args:
      kind: "lm", "binary", "multiclass" or "multilabel".
      labels: the declared label names, in index order; () takes those of the training split, sorted.
      **tables: the files it is read from, each a `table(...)`.
    """
    return ConfigDict({"kind": kind, "labels": labels, "tables": tables})


def table(
    path: str,
    text: str,
    id: str,
    patient: str = "",
    label: str = "",
    split: str = "",
    groups: Mapping[str, str] | None = None,
) -> ConfigDict:
    """Returns the description of one CSV, JSON-lines or Parquet file by its column names.

    Args:
      path: the file: `.csv`, `.csv.gz`, `.jsonl` or `.parquet`.
      text: the column of the note.
      id: the column that names the row, unique in the file.
      patient: the column of the patient; "" makes every row a patient of its own.
      label: the column of the label; several labels are separated by commas, or are a list.
      split: "train", "validation" or "test" for the whole file, a column that says so, or "" to split by patient.
      groups: what the subgroups of an evaluation are made of, and the column that has it: {"sex": "gender"}.
    """
    fields = {"path": path, "text": text, "id": id, "patient": patient, "label": label, "split": split}
    return ConfigDict(fields | {"groups": dict(groups or {})})


def native(format: str, train: str, test: str, validation: str = "", labels: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the description of an annotated dataset in the format it is given out in; `data/native.py` reads it.

    Args:
      format: "n2c2" (2018, brat), "i2b2" (2010), "radqa" or "mednli".
      train, test, validation: a folder each for n2c2 and i2b2, a file each for the others; without validation some of
        the training documents are set apart, a share of `config.split.validation`.
      labels: the label names, in index order; () takes those of the training split, sorted.
    """
    return ConfigDict(
        {"format": format, "train": train, "validation": validation, "test": test, "labels": tuple(labels)}
    )
