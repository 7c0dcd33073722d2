"""Marked entities, questions on reports, and pairs of sentences, from the files they are given out in.

    jaxlora prepare --config=configs/annotated.py:n2c2 --config.train=DIR --config.test=DIR --workdir=data/annotated
    jaxlora train --config=configs/annotated.py:n2c2,frozen_downstream --config.base=HF_DIR --workdir=runs/n2c2
    jaxlora evaluate --workdir=runs/n2c2
    jaxlora report --workdir=runs

Tasks: n2c2 (2018, adverse drug events; folders of .txt and .ann files), i2b2 (2010; folders of .txt and .con files),
radqa (JSON files) and mednli (JSON lines). With --config.validation="" a tenth of the training documents validates.
Rows: head_only, lora, frozen, frozen_downstream, trainable, trainable_downstream, and the two as published; the
clinical adapter is that of --config.clinical, the workdir of a step 1.

Expect: F1 of exact entities for n2c2 and i2b2, exact match and F1 for radqa as SQuAD 2 has them, AUROC and accuracy for
mednli. Nobody has measured this config on these sets, which need credentials. The learning rate and the epochs are
those that the paper's authors ran n2c2 (1e-4, 10) and RadQA (1e-4, 50) with.
"""

from ml_collections import ConfigDict

from jaxlora.config import default, native
from jaxlora.errors import one_of
from jaxlora.rows import set_row

EPOCHS = {"n2c2": 10, "i2b2": 10, "radqa": 50, "mednli": 10}


def get_config(run: str = "n2c2") -> ConfigDict:
    """Returns the config of a task and a row (`n2c2,lora`)."""
    task, _, row = run.partition(",")
    one_of("configs/annotated.py", task, EPOCHS)
    config = default()
    config.train = config.validation = config.test = ""
    config.datasets[task] = native(task, **{part: config.get_ref(part) for part in ("train", "validation", "test")})
    config.data.dir, config.data.name = "data/annotated", task
    config.data.length = 512
    config.data.long_notes = "truncate" if task == "mednli" else "chunk"
    config.dtype = "bfloat16"
    config.remat = "save_qkv"
    config.clinical = "runs/clinical"  # the workdir of step 1
    set_row(config, row or "frozen_downstream")
    if "clinical" in config.adapters:
        config.adapters.clinical.workdir = config.get_ref("clinical")
    config.learning_rate, config.batch_size, config.epochs = 1e-4, 16, EPOCHS[task]
    return config
