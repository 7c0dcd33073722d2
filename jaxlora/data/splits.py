"""Which split a patient is in: by the published lists of CORe, or by a share of the patients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxlora.data import mimic, tables
from jaxlora.data.examples import split_of
from jaxlora.errors import UserError

LISTS = {"train": "mimic_train.csv", "validation": "mimic_val.csv", "test": "mimic_test.csv"}


def splitter(core_splits: str | Path, split) -> Callable[[str], str | None]:
    """Returns the function from a patient's raw identifier to the split, or to None for a patient to leave out.

    Args:
      core_splits: the folder of the published lists, or "" to split by shares.
      split: `validation`, `test` and `seed` of the config, for the latter.

    Raises:
      UserError: a list is missing, or a patient is in two of them.
    """
    if core_splits:
        return core_lists(core_splits).get
    return partial(split_of, validation=split.validation, test=split.test, seed=split.seed)


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
