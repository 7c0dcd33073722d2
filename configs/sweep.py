"""Eight runs for the price of few: four learning rates by two seeds of one row, trained as one program.

    jaxlora prepare --config=configs/public_notes.py --workdir=runs/public_notes/data
    jaxlora train --config=configs/public_notes.py:clinical --workdir=runs/public_notes/clinical
    jaxlora sweep --config=configs/sweep.py --workdir=runs/sweep
    for run in runs/sweep/*/; do jaxlora evaluate --workdir=$run; done
    jaxlora report --workdir=runs/sweep

The question: which learning rate for the downstream adapter on MTS-Dialog's section headers? The row and the paths
are those of configs/public_notes.py; another row is --config=configs/sweep.py:lora, which needs no step 1. Every member
is a run as `train` makes it, in a folder of its own with its config, log and checkpoints, and its losses and parameters
are those of its own `train` to 1e-5.

What a member may have for itself: learning_rate, seed, weight_decay, b_rate, clip, warmup, decay, class_weights,
epochs, evaluations, select; alpha, dropout and rank of an adapter; and data.name, so five tasks can be one sweep:

    config.sweep = tuple((task, {"data.name": task}) for task in ("mortality", "length_of_stay", "diagnoses"))

What all share: base, active, trainable, data.length, batch_size. Expect: one line a member in the report, of a macro
AUROC on 100 notes, so that only large differences mean anything.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config(row: str = "frozen_downstream") -> ConfigDict:
    """Returns the config of a row of step 2, and the members."""
    config = _public_notes().get_config(row)
    config.sweep = tuple(
        (f"rate-{rate:g}-seed-{seed}", {"learning_rate": rate, "seed": seed})
        for rate in (3e-4, 1e-3, 3e-3, 1e-2)
        for seed in (0, 1)
    )
    return config


def _public_notes():
    """The config beside this one, wherever the command is given."""
    found = importlib.util.spec_from_file_location("public_notes", Path(__file__).with_name("public_notes.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
