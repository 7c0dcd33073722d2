"""The encoder baselines of the paper's tables 3 and 4: a BERT on an outcome of MIMIC, trained whole or by a LoRA.

    jaxlora prepare --config=configs/mimic.py --config.mimic3=DIR3 --workdir=data/mimic
    jaxlora train --config=configs/encoders.py:mor,full --config.base=HF_DIR --workdir=runs/bert-mor
    jaxlora evaluate --workdir=runs/bert-mor

HF_DIR is the directory of a BERT: the paper's are BlueBERT (bionlp/bluebert_pubmed_mimic_uncased_L-12_H-768_A-12),
UmlsBERT, Bio+ClinicalBERT (emilyalsentzer/Bio_ClinicalBERT) and CORe (bvanaken/CORe-clinical-outcome-biobert-v1). Some
have a pytorch_model.bin alone, which PyTorch reads. Tasks: pmv, mor, los, diag, proc. Rows: full, which trains the
whole model, and lora, of queries and values. --config.data.name takes another dataset, such as that of the paper's
counts, mimic3_admission/mor_paper.

The settings are the paper's: AdamW at 5e-5, 64 notes an update in two parts, 10 epochs, 128 tokens, the last epoch's
model. A row of a batch here holds as many notes as fit, most often one, since most notes fill it.

Expect: the paper's BlueBERT reaches an AUROC of 0.770 on mortality trained whole and 0.819 with LoRA, on length of stay
0.664 and 0.705, on its own split by patient. Nobody has measured this config on MIMIC yet.
"""

from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.errors import one_of
from jaxlora.rows import set_row

TASKS = ("pmv", "mor", "los", "diag", "proc")


def get_config(run: str = "mor,full") -> ConfigDict:
    """Returns the config of a task and a row (`mor,lora`)."""
    task, _, row = run.partition(",")
    one_of("configs/encoders.py", task, TASKS)
    config = default()
    config.data.dir, config.data.name = "data/mimic", f"mimic3_admission/{task}"
    config.data.length = 128
    if one_of("configs/encoders.py", row or "full", ("full", "lora")) == "lora":
        set_row(config, "lora", targets=("query", "value"))
    else:
        config.trainable = ("base", "head")
    config.learning_rate, config.epochs = 5e-5, 10
    config.batch_size, config.accumulate = 64, 2
    config.select = "last"
    return config
