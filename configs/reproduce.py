"""The paper's Tables 2, 3 and 4, each by one command.

    jaxlora prepare --config=configs/reproduce.py --config.mimic3=DIR3 --config.mimic4=DIR4 --workdir=data/mimic
    jaxlora reproduce --table=3 --config=configs/reproduce.py --config.bases.llama=HF_DIR --workdir=runs/paper
    jaxlora reproduce --table=3 --scale=demo --config=configs/reproduce.py --workdir=runs/small

`--rows=lora,frozen`, `--tasks=mor,los` and `--seeds=3` choose what is run; a run that is there is not made again, so
the same command with more rows, tasks or seeds adds to the table, and one that was stopped goes on. A row whose base
has no directory is listed as not run. `--config.mode=paper` reads the datasets that `prepare` makes with the same flag,
and has the published schedule and the last epoch; --config.data.length=512 reads as much as the authors' later runs.
`--config.search.method=random --config.search.budget=10` first searches each task of every row that trains anything,
with as many trials for all (the authors gave theirs 1, 10 or 20), by validation AUROC; the seeds are run with the best.
On an accelerator, which serves one process, `config.together` runs of a row at the most, of several seeds and tasks,
are trained as one program, fewer where they would not fit; each gives what it gives alone but for rounding. On a CPU
two processes work side by side, of which a single program leaves one idle: three seeds of two tasks took two cores 89 s
of CPU as two programs and 98 s as six runs, with the same table, so there it is left to you (--config.together=3).
`--scale=demo` makes a generated cohort and small bases; its figures say that the rows run, and nothing about rows.

Expect runs/paper/table-3.{md,tex,json,html}: the paper's best row has an AUROC of 72.81 averaged over the five tasks,
its ++ Downstream rows made without the second adapter. Nobody has measured this config on MIMIC yet.
"""

from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.reproduce.tables import BASES


def get_config() -> ConfigDict:
    """Returns the settings of the paper (`full`) and of the small cohort (`demo`), where rows differ in them."""
    config = default()
    config.data.dir = "data/mimic"
    config.data.length = 128
    config.dtype = "bfloat16"
    config.remat = "save_qkv"
    config.bases = ConfigDict({name: "" for name, base in BASES.items() if base.kind})  # Hugging Face directories
    config.together = 0  # runs of a row that are trained as one program; 0 is 4 on an accelerator, and 1 on a CPU
    config.resamples = 2000  # of the patients, for the intervals
    config.tfidf = ConfigDict({"c": (0.1, 1.0, 10.0), "words": 50_000})  # C is chosen on the validation notes

    # What `config.search` may set beside `rates`, the learning rate's range: the sizes of each LoRA that a row trains.
    config.sizes = (("rank", (2, 4, 8, 16)), ("alpha", (4.0, 8.0, 16.0, 32.0)), ("dropout", (0.0, 0.1, 0.2)))

    # Section 4 of the paper and its code of June 2023: updates of `batch_size` notes in `accumulate` parts.
    config.full = ConfigDict({"corpus": "mimic4", "targets": ("q_proj", "v_proj")})
    config.full.swept = True  # the downstream LoRA has the sizes that the paper's sweep chose for each task
    config.full.clinical = _part(3e-4, 1, 40, accumulate=4)
    config.full.head = _part(5e-5, 10, 80, accumulate=10)  # head only and the rows with a clinical adapter
    config.full.lora = _part(5e-5, 10, 20, accumulate=2)
    config.full.lora.learning_rate_mor = 3e-4
    config.full.whole = _part(1e-5, 10, 32, accumulate=32)  # full fine-tuning, for which the paper prints nothing
    config.full.encoder = _part(5e-5, 10, 64, accumulate=2)

    small = config.demo = ConfigDict({"corpus": "mimic3", "swept": False, "patients": 400, "length": 192})
    small.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    small.test = 0.3  # share of the patients
    small.base = ConfigDict({"vocab": 3000, "embed": 64, "mlp": 172, "layers": 2, "heads": 2, "kv_heads": 1})
    small.base.sentences, small.base.others, small.base.times = 8000, 200, 8
    small.base.update(_part(5e-3, 3, 4))
    small.bert = ConfigDict({"vocab": 2000, "embed": 64, "mlp": 256, "layers": 2, "heads": 2})
    small.clinical = _part(4e-3, 2, 4)
    small.head = _part(2e-3, 4, 4)
    small.lora = _part(2e-3, 4, 4)
    small.whole = _part(5e-4, 4, 4)
    small.encoder = _part(5e-4, 4, 4)
    return config


def _part(learning_rate: float, epochs: int, batch_size: int, accumulate: int = 1) -> ConfigDict:
    fields = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "accumulate": accumulate}
    return ConfigDict(fields | {"rates": ("log", learning_rate / 10, 10 * learning_rate)})
