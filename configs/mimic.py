"""MIMIC-III, MIMIC-IV and a LLaMA of yours: step 1 on the notes of training patients, step 2 on one outcome.

    jaxlora prepare --config=configs/mimic.py --config.mimic3=DIR3 --config.mimic4=DIR4 --workdir=data/mimic
    jaxlora train --config=configs/mimic.py:mimic3,clinical --config.base=HF_DIR --workdir=runs/clinical
    jaxlora train --config=configs/mimic.py:mimic3,mor,frozen_downstream --config.base=HF_DIR --workdir=runs/mor
    jaxlora evaluate --workdir=runs/mor

One of the two folders is enough. DIR3 holds the tables of MIMIC-III v1.4; DIR4 hosp/, icu/ and note/ of MIMIC-IV 2.2 or
3.x and MIMIC-IV-Note 2.2 (or --config.mimic4_note for the latter), as .csv or .csv.gz. Tasks: mor, mor_unfiltered, los,
diag, proc and pmv; of MIMIC-IV diag9, diag10, proc9 and proc10, and, with --config.gem and --config.gem_procedures, a
diag and a proc in which ICD-10 is mapped to ICD-9. Rows: head_only, lora, frozen, frozen_downstream, trainable,
trainable_downstream, and the two as published.

The paper's counts: --config.mode=paper --config.core_splits=DIR with the lists of CORe, --config.beep=pmv_labels.pkl,
and `jaxlora verify-data` with the same flags; its datasets end in _paper: mimic3_paper,mor,lora. The paper's step 1 is
mimic4_paper,clinical at --config.data.length=128 or 512 and --config.data.long_notes=truncate; both releases together
are --config.data.mix="(('clinical_corpus/mimic3',1.0),)" on top of mimic4,clinical. MIMIC-IV has admissions of
MIMIC-III's test patients: `jaxlora audit` counts them and writes the hashes that --config.corpus.exclude leaves out.

Expect: the paper's best row reaches an AUROC of 0.77 on mortality and 0.66 on length of stay, with LLaMA-7B, 128 tokens
and its own split by patient; its head-only row 0.67 and 0.58. Nobody has measured this config on MIMIC yet.
"""

from ml_collections import ConfigDict

from jaxlora.config import adapter, default
from jaxlora.data.examples import MODES, named, unnamed
from jaxlora.data.tasks import TASKS
from jaxlora.errors import one_of
from jaxlora.rows import set_row


def get_config(run: str = "mimic3,clinical") -> ConfigDict:
    """Returns the config of step 1 (`mimic4,clinical`) or of a task and a row (`mimic3,mor,lora`)."""
    config = default()
    config.data.dir = "data/mimic"
    config.data.length = 512
    config.dtype = "bfloat16"
    config.remat = "save_qkv"
    config.clinical = "runs/clinical"  # the workdir of step 1

    given, _, rest = run.partition(",")
    step, _, row = rest.partition(",")
    one_of("configs/mimic.py", given, [named(release, mode) for release in TASKS for mode in MODES])
    release, mode = unnamed(given)
    one_of("configs/mimic.py", step, ("clinical", *TASKS[release]))
    if step == "clinical":
        config.data.name, config.data.long_notes = f"clinical_corpus/{given}", "chunk"
        config.adapters.clinical = adapter(rank=16, alpha=32)
        config.active = config.trainable = ("clinical",)
        config.learning_rate, config.batch_size, config.epochs = 3e-4, 32, 1
        config.evaluations = 20
    else:
        config.data.name = f"{release}_admission/{named(step, mode)}"
        set_row(config, row or "frozen_downstream")
        if "clinical" in config.adapters:
            config.adapters.clinical.workdir = config.get_ref("clinical")
        config.learning_rate, config.batch_size, config.epochs = 1e-4, 16, 10
    return config
