"""Which settings? Several runs for the price of few: a list of them, or a search.

    jaxlora prepare --config=configs/public_notes.py --workdir=runs/public_notes/data
    jaxlora train --config=configs/public_notes.py:clinical --workdir=runs/public_notes/clinical
    jaxlora sweep --config=configs/sweep.py --workdir=runs/sweep
    for run in runs/sweep/*/; do jaxlora evaluate --workdir=$run; done
    jaxlora report --workdir=runs/sweep

A list, `config.sweep`: which learning rate for the downstream adapter on MTS-Dialog's section headers? Four by two
seeds of one row, trained as one program. The row and the paths are those of configs/public_notes.py; another row is
--config=configs/sweep.py:lora, which needs no step 1. Every member is a run as `train` makes it, in a folder of its own
with its config, log and checkpoints, and its losses are those of its own `train` but for rounding, which at a rate of
3e-3 and above grows over the updates.

What a member may have for itself: learning_rate, seed, weight_decay, b_rate, clip, warmup, decay, class_weights,
epochs, evaluations, select; alpha, dropout and rank of an adapter; and data.name, so five tasks can be one sweep:

    config.sweep = tuple((task, {"data.name": task}) for task in ("mortality", "length_of_stay", "diagnoses"))

What all share: base, active, trainable, data.length, batch_size. Expect: one line a member in the report, of a macro
AUROC on 100 notes, so that only large differences mean anything.

A search, `config.search`, looks for the settings with the best validation, and leaves the test notes alone:

    jaxlora prepare --config=configs/sweep.py:lora,bayes --workdir=runs/search/data
    jaxlora sweep --config=configs/sweep.py:lora,bayes --workdir=runs/search/lora
    jaxlora sweep --config=configs/sweep.py:head_only,random --workdir=runs/search/head_only

It tries `config.search.budget` settings of `config.search.space` (any field; the paper's spaces are `SPACES` below) by
"grid", "random" or "bayes" (which needs the extra `search`), `config.search.together` of them as one program where that
can be, and ends with sweep.md, best.json and figures/parallel.png. Rows of one table want the same budget: the authors
gave theirs 1, 10 or 20 trials, so that some rows are better searched than others.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from jaxlora.config import table
from jaxlora.errors import one_of
from jaxlora.search.suggest import METHODS

_TOKENS = ("virtual_tokens", (1, 5, 10, 15, 20))
_DROPOUT = ("dropout", (0.0, 0.1, 0.2))
# What the paper searched of each technique, May to July 2023; later LoRAs had no rank of 2 and no alpha of 4.
SPACES = {
    "lora": (("rank", (2, 4, 8, 16)), ("alpha", (4.0, 8.0, 16.0, 32.0)), _DROPOUT),
    "adaptation_prompt": (("length", (5, 10)), ("layers", (10, 20, 30))),
    "prefix": (_TOKENS, ("projection", (False, True))),
    "prompt": (_TOKENS, ("init", ("random", "text"))),
    "p_tuning": (
        _TOKENS, ("encoder", ("mlp", "lstm")), ("hidden", (64, 128, 256, 768)), ("layers", (1, 2, 4, 8, 12)), _DROPOUT,
    ),
    "adalora": (("start", (0, 600, 2000)), ("end", (0, 8000, 25000, 50000)), ("interval", (1, 10, 100))),
}  # fmt: skip


def get_config(run: str = "frozen_downstream") -> ConfigDict:
    """Returns the config of a row of step 2 with a list of members, or with a search (`lora,bayes`)."""
    row, _, method = run.partition(",")
    config = _public_notes().get_config(row)
    if not method:
        config.sweep = tuple(
            (f"rate-{rate:g}-seed-{seed}", {"learning_rate": rate, "seed": seed})
            for rate in (3e-4, 1e-3, 3e-3, 1e-2)
            for seed in (0, 1)
        )
        return config
    config.search.method = one_of("configs/sweep.py", method, METHODS)
    rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2) if method == "grid" else ("log", 3e-4, 3e-2)
    config.search.space = (("learning_rate", rates),)
    if method == "grid":
        config.search.budget = 240  # five learning rates by the paper's 48 LoRAs
    if "downstream" in config.active:
        config.search.space += space("downstream", "lora")
    _with_validation(config)
    return config


def space(adapter: str, technique: str) -> tuple[tuple[str, tuple], ...]:
    """Returns the paper's space of a technique, for an adapter of a config."""
    return tuple((f"adapters.{adapter}.{field}", values) for field, values in SPACES[technique])


def _with_validation(config: ConfigDict) -> None:
    """Sets a fifth of the training file apart to compare trials on, as the validation file is the test split here."""
    config.data.dir = "runs/search/data"
    config.split.validation, config.split.test = 0.2, 0.0
    columns = {"id": "ID", "text": "section_text", "label": "section_header"}
    training = config.get_ref("mts_dialog") + "/MTS_Dataset_TrainingSet.csv"
    config.datasets.sections.tables.train = table(training, **columns)


def _public_notes():
    """The config beside this one, wherever the command is given."""
    found = importlib.util.spec_from_file_location("public_notes", Path(__file__).with_name("public_notes.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
