"""Your own notes, from one CSV, JSON-lines or Parquet file with the columns id, patient, text and label.

    jaxlora prepare --config=configs/table.py --config.path=notes.csv --workdir=data/table
    jaxlora train --config=configs/table.py:clinical --config.base=HF_DIR --workdir=runs/table/clinical
    jaxlora train --config=configs/table.py:frozen_downstream --config.base=HF_DIR --workdir=runs/table/downstream
    jaxlora evaluate --workdir=runs/table/downstream

Other column names: --config.columns.text=note; another kind of label: --config.kind=binary or multilabel. The patients
are split 70/10/20, the same for both steps. Expect: with a small base on a CPU, minutes; the numbers are your data's.
"""

from ml_collections import ConfigDict

from jaxlora.config import adapter, dataset, default, table
from jaxlora.errors import one_of
from jaxlora.rows import ROWS, set_row


def get_config(run: str = "clinical") -> ConfigDict:
    """Returns the config of step 1 (`clinical`) or of a row of step 2."""
    config = default()
    config.path, config.kind = "", "multiclass"
    config.columns = ConfigDict({"id": "id", "patient": "patient", "text": "text", "label": "label"})
    columns = {name: config.columns.get_ref(name) for name in config.columns}
    unlabelled = {name: ref for name, ref in columns.items() if name != "label"}
    config.datasets.notes = dataset("lm", table=table(config.get_ref("path"), **unlabelled))
    config.datasets.outcome = dataset(config.get_ref("kind"), table=table(config.get_ref("path"), **columns))
    config.data.dir = "data/table"
    config.clinical = "runs/table/clinical"  # the workdir of step 1

    one_of("configs/table.py", run, ("clinical", *ROWS))
    if run == "clinical":
        config.data.name = "notes"
        config.adapters.clinical = adapter(rank=16, alpha=32)
        config.active = config.trainable = ("clinical",)
        config.epochs = 2
    else:
        config.data.name = "outcome"
        set_row(config, run)
        if "clinical" in config.adapters:
            config.adapters.clinical.workdir = config.get_ref("clinical")
        config.epochs = 10
    return config
