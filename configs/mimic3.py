"""MIMIC-III v1.4 and a LLaMA of yours: step 1 on the notes of the training patients, step 2 on one outcome.

    jaxlora prepare --config=configs/mimic3.py --config.mimic3=DIR --workdir=data/mimic3
    jaxlora train --config=configs/mimic3.py:clinical --config.base=HF_DIR --workdir=runs/clinical
    jaxlora train --config=configs/mimic3.py:mortality,frozen_downstream --config.base=HF_DIR --workdir=runs/mortality
    jaxlora evaluate --workdir=runs/mortality

DIR holds NOTEEVENTS, ADMISSIONS, DIAGNOSES_ICD and PROCEDURES_ICD (.csv or .csv.gz). Tasks: mortality,
length_of_stay, diagnoses, procedures. Rows: head_only, lora, frozen, frozen_downstream, trainable,
trainable_downstream, and the two as published.

Expect: the paper's best row reaches an AUROC of 0.77 on mortality and 0.66 on length of stay, with LLaMA-7B, 128 tokens
and its own split by patient; its head-only row 0.67 and 0.58. Nobody has measured this config on MIMIC yet.
"""

from ml_collections import ConfigDict

from jaxlora.config import adapter, default
from jaxlora.errors import one_of
from jaxlora.rows import set_row

TASKS = ("mortality", "length_of_stay", "diagnoses", "procedures")


def get_config(run: str = "clinical") -> ConfigDict:
    """Returns the config of step 1 (`clinical`) or of a task and a row (`mortality,lora`)."""
    config = default()
    config.data.dir = "data/mimic3"
    config.data.length = 512
    config.dtype = "bfloat16"
    config.remat = "save_qkv"
    config.clinical = "runs/clinical"  # the workdir of step 1

    step, _, row = run.partition(",")
    one_of("configs/mimic3.py", step, ("clinical", *TASKS))
    if step == "clinical":
        config.data.name, config.data.long_notes = "notes", "chunk"
        config.adapters.clinical = adapter(rank=16, alpha=32)
        config.active = config.trainable = ("clinical",)
        config.learning_rate, config.batch_size, config.epochs = 3e-4, 32, 1
        config.evaluations = 20
    else:
        config.data.name = step
        set_row(config, row or "frozen_downstream")
        if "clinical" in config.adapters:
            config.adapters.clinical.workdir = config.get_ref("clinical")
        config.learning_rate, config.batch_size, config.epochs = 1e-4, 16, 10
    return config
