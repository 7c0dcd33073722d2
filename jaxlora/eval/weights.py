"""Weights of notes when patients are drawn again, and the sums over them of which every metric is made.

In a resample each patient is drawn a number of times that is Poisson distributed with mean one, the bootstrap of Hanley
and MacGibbon (2006); a note weighs as often as its patient was drawn. What a metric needs is then a sum of weights over
some set of notes: a row of a sparse 0/1 matrix `[rows, notes]`, times the weights `[notes, replicates]`. Sums of whole
numbers in float32 are exact below 2^24.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

WIDTH = 256  # replicates at a time: the weights of 10,000 notes are then 10 MB


class Drawn:
    """The weights of some resamples.

    Args:
      weights: float32 `[notes, replicates]`.
    """

    def __init__(self, weights: np.ndarray):
        self._weights = np.ascontiguousarray(weights)
        self.count = weights.shape[1]

    def sums(self, rows: csr_array) -> np.ndarray:
        """Returns `[rows, replicates]`, from `rows: [rows, notes]`."""
        return rows @ self._weights

    def parts(self, width: int) -> Iterator["Drawn"]:
        """Yields the same replicates, at most `width` at a time."""
        for start in range(0, self.count, width):
            yield Drawn(self._weights[:, start : start + width])


class LeftOut:
    """All notes but those of one patient, for some patients: the replicates of a jackknife.

    Args:
      members: 0/1 `[notes, replicates]`, the notes of each patient.
    """

    def __init__(self, members: csr_array):
        self._members = members
        self.count = members.shape[1]

    def sums(self, rows: csr_array) -> np.ndarray:
        """Returns `[rows, replicates]`, from `rows: [rows, notes]`."""
        return rows.sum(axis=1)[:, None] - (rows @ self._members).toarray()

    def parts(self, width: int) -> Iterator["LeftOut"]:
        """Yields the same replicates, at most `width` at a time."""
        for start in range(0, self.count, width):
            yield LeftOut(self._members[:, start : start + width]) if width < self.count else self


Weights = Drawn | LeftOut


def unit(notes: int) -> Drawn:
    """Returns the one replicate in which every note weighs one: the sample itself."""
    return Drawn(np.ones((notes, 1), np.float32))


def drawn(patients: np.ndarray, resamples: int, seed: int) -> Iterator[Drawn]:
    """Yields `resamples` bootstrap replicates, some at a time.

    How often a patient is drawn follows from its name, the seed and the number of the replicate. So the patients of two
    runs, of two seeds or of two tasks that share some are one draw, in which none of them needs to know the others.

    Args:
      patients: of each note, `[notes]`.
    """
    names, of_note = np.unique(patients, return_inverse=True)
    times = np.empty((len(names), resamples), np.uint8)
    for row, name in zip(times, names, strict=True):
        digest = hashlib.blake2b(str(name).encode(), digest_size=8).digest()
        row[:] = np.random.default_rng([int.from_bytes(digest, "little"), seed]).poisson(1, resamples)
    for start in range(0, resamples, WIDTH):
        yield Drawn(times[of_note, start : start + WIDTH].astype(np.float32))


def left_out(patients: np.ndarray) -> Iterator[LeftOut]:
    """Yields the jackknife's replicates, one for each patient in the order of their names, some at a time."""
    names, of_note = np.unique(patients, return_inverse=True)
    for start in range(0, len(names), WIDTH):
        width = min(WIDTH, len(names) - start)
        here = np.flatnonzero((of_note >= start) & (of_note < start + width))
        entries = np.ones(len(here), np.float32), (here, of_note[here] - start)
        yield LeftOut(csr_array(entries, shape=(len(of_note), width)))
