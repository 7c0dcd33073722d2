"""Patients in more than one split, within a dataset and across datasets: counts, never names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlora.audit.contents import Part


@dataclass(frozen=True)
class Shared:
    """Two splits that differ, of one dataset or of two, and how many patients are in both."""

    first: str
    first_split: str
    second: str
    second_split: str
    patients: int


def in_two_splits(parts: Sequence[Part]) -> list[Shared]:
    """Returns every pair of different splits with patients in both; a patient is known by the keyed identifier.

    A clinical corpus counts like any dataset: a patient whose notes step 1 trains on is not unseen in a test split.
    """
    unique = [np.unique(part.patients) for part in parts]
    shared = []
    for i, first in enumerate(parts):
        for j in range(i + 1, len(parts)):
            second = parts[j]
            if first.split == second.split:
                continue
            count = len(np.intersect1d(unique[i], unique[j], assume_unique=True))
            if count:
                shared.append(Shared(first.dataset, first.split, second.dataset, second.split, count))
    return shared


def repeated_ids(parts: Sequence[Part]) -> dict[str, int]:
    """Returns for every dataset how many identifiers of notes occur twice, in one split or in two."""
    repeated = {}
    for name in dict.fromkeys(part.dataset for part in parts):
        ids = np.concatenate([part.ids for part in parts if part.dataset == name])
        repeated[name] = len(ids) - len(np.unique(ids))
    return repeated
