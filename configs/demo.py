"""The whole idea on a generated cohort, in minutes on two CPU cores.

    jaxlora demo --config=configs/demo.py --workdir=runs/demo

It ends with the table of runs/demo/report.md, after about three minutes. Expect perplexity 373 -> 30, and on both
tasks a trained LoRA well above "LLaMA (head only)": mortality 0.78 and 0.57, length of stay 0.68 and 0.59. Which of the
rows that is differs with the rounding of a machine.
Sizes and rates were chosen on the validation notes of another cohort (--config.seed=1, some 700 notes to validate). Its
mortality with both adapters trained, by rate and for two seeds: 5e-4 0.73 and 0.78, 1e-3 0.65 and 0.79, 2e-3 0.72 and
0.59, 4e-3 0.62 and 0.58; LoRA alone 0.61 and 0.63 at 5e-4, 0.64 and 0.66 at 1e-3. So small a model on 400 notes is no
evidence for a row, and README gives the spread over four seeds.
"""

from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.rows import TABLE


def get_config() -> ConfigDict:
    """Returns the sizes of the demo."""
    config = default()
    config.split.test = 0.3
    config.data.length = 192  # one admission note
    config.clip = 1.0

    config.demo = ConfigDict()
    config.demo.patients = 600
    config.demo.tasks = ("mor", "los")
    config.demo.rows = TABLE
    # Every linear layer: on so small a model, queries and values alone hold too little.
    config.demo.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    # The small LLaMA, trained whole on generated plain English; --base=HF_DIR takes another one instead.
    config.demo.base = ConfigDict({"vocab": 3000, "embed": 64, "mlp": 172, "layers": 2, "heads": 2, "kv_heads": 1})
    config.demo.base.sentences = 8000
    config.demo.base.others = 200  # patients outside the cohort: lists of their notes' words are read as well
    config.demo.base.times = 8  # how often each word is listed
    config.demo.base.learning_rate, config.demo.base.epochs, config.demo.base.batch_size = 5e-3, 3, 4

    config.demo.clinical = ConfigDict({"learning_rate": 8e-3, "epochs": 2, "batch_size": 4})
    config.demo.downstream = ConfigDict({"learning_rate": 1e-3, "epochs": 7, "batch_size": 4})
    return config
