"""The evaluated runs under a folder: what each was, what it predicted, and how it went."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlora.errors import UserError
from jaxlora.eval.predictions import Predictions, load
from jaxlora.interop.bert import is_bert
from jaxlora.interop.llama_config import read_json
from jaxlora.models.lora_spec import BERT_MODULES, MODULES
from jaxlora.rows import ROWS, title_of

_FAMILIES = ("LLaMA", "base"), ("BERT",)  # what a base is called, those together whose rows stand beside each other
_TECHNIQUES = {
    "adalora": "AdaLoRA",
    "ia3": "(IA)³",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "p_tuning": "P-tuning",
    "adaptation_prompt": "adaptation prompt",
}


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """One evaluated run: its dataset, its active adapters, the title of its row, its predictions, its log, its name as
    a member of a sweep, the directory of its base, of an outcome its predictions for validation notes, if any, what
    its active adapters are, and, where there are several bases, what its own is called."""

    dataset: str
    active: tuple[str, ...]
    row: str
    predictions: Predictions
    log: list[dict[str, float]]
    member: str = ""
    base: str = ""
    validation: Predictions | None = None
    technique: str = ""
    base_name: str = ""


def find_runs(folder: str | Path, split: str = "test") -> list[EvaluatedRun]:
    """Returns every evaluated run under `folder`, in the order of the rows of the paper's tables. Where there are
    several bases, each row names its own, and where a row was run on adapters of several kinds, it names these.

    Raises:
      UserError: there is none, or a file of one is missing or damaged.
    """
    runs = [_read(path) for path in sorted(Path(folder).rglob(f"predictions-{split}.npz"))]
    if not runs:
        raise UserError(f"--workdir: no evaluated run under {folder}; run `jaxlora evaluate` on one first")
    order = [row.title.replace("LLaMA", name) for names in _FAMILIES for row in ROWS.values() for name in names]
    runs = sorted(runs, key=lambda run: (run.dataset, order.index(run.row) if run.row in order else len(order)))
    kinds: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        kinds.setdefault((run.dataset, run.row), set()).add(run.technique)
    runs = [
        dataclasses.replace(run, row=f"{run.row}, {run.technique}") if len(kinds[run.dataset, run.row]) > 1 else run
        for run in runs
    ]
    bases = _short({run.base for run in runs if run.base})
    if len(bases) < 2:
        return runs
    named = ((run, bases.get(run.base, "")) for run in runs)
    return [dataclasses.replace(run, row=f"{run.row}, {of}", base_name=of) if of else run for run, of in named]


def title(config: Mapping[str, Any]) -> str:
    """Returns the title of the row that a run's config is, with what its base is and how its adapter is made.

    Raises:
      UserError: the base is here and its config.json is damaged.
    """
    active, adapters = tuple(config["active"]), config["adapters"]
    techniques = [*_techniques(active, adapters), "LoRA"]
    row, family = (
        title_of(active, tuple(config["trainable"]), tuple(adapters)),
        _family(config.get("base", ""), adapters),
    )
    return row.replace("LLaMA", family).replace("LoRA", techniques[0])


def _techniques(active: Sequence[str], adapters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns what each active adapter is."""
    given = [adapters[name].get("technique", "lora") for name in active if name in adapters]
    return [_TECHNIQUES.get(technique, "LoRA") for technique in given]


def _family(base: str, adapters: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the base is: as its config.json says or, where it is not here, the layers that a LoRA is on."""
    if base and (Path(base) / "config.json").exists():
        return "BERT" if is_bert(read_json(base)) else "LLaMA"
    targets = {target for adapter in adapters.values() for target in adapter.get("targets", ())}
    of_bert, of_llama = targets & BERT_MODULES.keys(), targets & MODULES.keys()
    return "BERT" if of_bert else "LLaMA" if of_llama else "base"


def _short(paths: set[str]) -> dict[str, str]:
    """Returns what tells some paths apart: as few of their last parts as do."""
    for parts in itertools.count(1):
        names = {path: "/".join(Path(path).parts[-parts:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names


def _read(predictions: Path) -> EvaluatedRun:
    path, sweep = predictions.parent / "config.json", predictions.parent.parent / "sweep.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        dataset, active, row = config["data"]["name"], tuple(config["active"]), title(config)
        technique = " + ".join(_techniques(active, config["adapters"]))
        path = predictions.parent / "log.jsonl"
        log = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        path, member = sweep, predictions.parent.name
        if not sweep.exists() or member not in json.loads(sweep.read_text(encoding="utf-8")):
            member = ""
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy the whole run, or remove its {predictions.name}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; copy it again, or remove {predictions}") from None
    held_out = predictions.parent / "predictions-validation.npz"
    return EvaluatedRun(
        dataset,
        active,
        f"{row}, {member}" if member else row,
        load(predictions),
        log,
        member,
        config.get("base", ""),
        load(held_out) if held_out.exists() else None,
        technique,
    )
