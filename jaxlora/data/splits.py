"""Which split a patient is in: by the published lists of CORe, or by a share of the patients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from jaxlora.data import mimic, tables
from jaxlora.data.examples import split_of
from jaxlora.errors import UserError

LISTS = {"train": "mimic_train.csv", "validation": "mimic_val.csv", "test": "mimic_test.csv"}


def splitter(release: str, config: ConfigDict) -> Callable[[str], str | None]:
    """Returns the function from a patient's raw identifier to the split, or to None for a patient to leave out.

    Args:
      release: its name; the published lists are of MIMIC-III, and for it alone.
      config: `core_splits`, the folder of the lists, or "" to split by the shares of `split`.

    Raises:
      UserError: a list is missing, or a patient is in two of them.
    """
    if config.core_splits and release == "mimic3":
        return core_lists(config.core_splits).get
    return partial(split_of, **config.split)


def core_lists(folder: str | Path) -> dict[str, str]:
    """Returns the split of every patient of the lists `mimic_{train,val,test}.csv`, whose column is SUBJECT_ID.

    Raises:
      UserError: a list is missing, or a patient is in two of them.
    """
    result: dict[str, str] = {}
    for split, name in LISTS.items():
        path = Path(folder) / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; set core_splits to the folder of {', '.join(LISTS.values())}")
        for number, row in tables.rows(path, ("SUBJECT_ID",)):
            patient = mimic.identifier(mimic.required(path, row, "SUBJECT_ID", number))
            if result.setdefault(patient, split) != split:
                other = LISTS[result[patient]]
                raise UserError(f"{path}, row {number}: {other} has this patient too; copy the published lists again")
    return result
