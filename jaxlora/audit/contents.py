"""What lies in a folder of prepared datasets: their names, and who and what is in each split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxlora.data import builders
from jaxlora.data.examples import MODES, OUTCOMES, unnamed
from jaxlora.errors import one_of

_BATCH = 256


@dataclass(frozen=True)
class Part:
    """One split of one dataset.

    Attributes:
      ids, patients: `[notes]`, keyed, as bytes.
      labels: int64 `[notes]`; for several labels a note, a list of int64 arrays; None for other kinds.
    """

    dataset: str
    split: str
    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray | list[np.ndarray] | None


def names(workdir: str | Path, mode: str) -> list[str]:
    """Returns the prepared datasets of one mode, and your own tables, as `builders.load` takes them, sorted.

    The two modes split differently, so what one trains on the other may test on; they are audited apart.

    Raises:
      UserError: there is no such mode.
    """
    one_of("config.mode", mode, MODES)
    return [name for name in builders.names(workdir) if "/" not in name or unnamed(name)[1] == mode]


def records(data: builders.Prepared, name: str, split: str, chosen: Sequence[int] | None = None) -> Iterator[dict]:
    """Yields the records of one split in order, or the chosen ones of them, with a progress bar where it takes long."""
    source = data.split(split)
    chosen = range(len(source)) if chosen is None else chosen
    with tqdm(total=len(chosen), desc=f"{name} {split}", unit=" notes", disable=None, leave=False, delay=2) as bar:
        for start in range(0, len(chosen), _BATCH):
            batch = source.__getitems__([int(i) for i in chosen[start : start + _BATCH]])
            yield from batch
            bar.update(len(batch))


def survey(workdir: str | Path, mode: str) -> list[Part]:
    """Returns every split of every prepared dataset of one mode, without its texts, in the order of `names`."""
    parts = []
    for name in names(workdir, mode):
        data = builders.load(workdir, name)
        parts += [_part(data, name, split) for split in data.splits]
    return parts


def _part(data: builders.Prepared, name: str, split: str) -> Part:
    ids, patients, labels = [], [], []
    for record in records(data, name, split):
        ids.append(record["id"])
        patients.append(record["patient"])
        if data.task.kind in OUTCOMES:
            labels.append(record["label"])
    kept = {"binary": np.asarray, "multiclass": np.asarray, "multilabel": list}.get(data.task.kind)
    return Part(name, split, np.asarray(ids, "S"), np.asarray(patients, "S"), kept(labels) if kept else None)
