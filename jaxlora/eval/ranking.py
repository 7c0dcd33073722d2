"""AUROC and average precision of weighted notes, in many replicates at once, from one sort.

In the order of the scores, best first, only the places of the positives matter: between two of them the negatives'
weights enter as one sum. With `P[k]` the weight of the positives at the k-th score that a positive has, and `F[k]` that
of the negatives at or above it (those tied with it by half),

    AUROC = 1 - sum_k P[k] F[k] / (positives negatives),    AP = sum_k P[k] precision[k] / positives.
"""

import numpy as np
from scipy.sparse import csr_array

from jaxlora.eval.weights import Weights

_ENTRIES = 2**22  # of a temporary array: 32 MB


class Ranking:
    """The elements of one label in the order of their scores; an element is a note, or a note and a label (micro).

    Args:
      truth: 0/1 `[elements]`, with at least one positive. scores: `[elements]`, without NaN.
      of_note: int `[elements]`, whose weight an element has. notes: how many notes there are.
    """

    def __init__(self, truth: np.ndarray, scores: np.ndarray, of_note: np.ndarray, notes: int):
        order = np.argsort(-scores, kind="stable")
        ranked, positive, of_note = scores[order], truth[order].astype(bool), of_note[order].astype(np.int32)
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) + 1  # of each group of equal scores
        sizes = np.diff(ends, prepend=0)
        positives = np.diff(np.cumsum(positive)[ends - 1], prepend=0)
        kept = positives > 0
        self._all = _sets(of_note, np.append(ends[kept], len(order)), notes)
        self._positive = _sets(of_note[positive], np.cumsum(positives[kept]), notes)
        mixed = kept & (sizes > positives)
        self._mixed = np.flatnonzero(mixed[kept])
        tied = ~positive & np.repeat(mixed, sizes)
        self._tied = _sets(of_note[tied], np.cumsum((sizes - positives)[mixed]), notes)

    def __call__(self, weights: Weights) -> np.ndarray:
        """Returns `[2, replicates]`: AUROC and average precision, NaN where one class has no weight."""
        width = max(16, _ENTRIES // self._all.shape[0])
        return np.concatenate([self._values(part) for part in weights.parts(width)], axis=1)

    def _values(self, weights: Weights) -> np.ndarray:
        above = _running(weights.sums(self._all))
        here = weights.sums(self._positive).astype(np.float64)
        found = _running(here)
        positives, negatives = found[-1], above[-1] - found[-1]
        above = above[:-1]
        losses = np.einsum("KR,KR->R", here, above - found)
        if len(self._mixed):
            losses -= np.einsum("KR,KR->R", here[self._mixed], weights.sums(self._tied).astype(np.float64)) / 2
        precision = np.divide(found, above, out=np.zeros_like(found), where=above > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            auroc = 1 - losses / (positives * negatives)
            average = np.einsum("KR,KR->R", here, precision) / positives
        return np.stack([auroc, np.where(negatives > 0, average, np.nan)])


def _sets(of_note: np.ndarray, ends: np.ndarray, notes: int) -> csr_array:
    """Returns `[sets, notes]`: consecutive elements form a set, up to each of `ends`."""
    borders = np.concatenate([[0], ends]).astype(np.int32)
    return csr_array((np.ones(len(of_note), np.float32), of_note, borders), shape=(len(ends), notes))


def _running(sums: np.ndarray) -> np.ndarray:
    """Returns the running sum along the first axis, in float64; np.cumsum goes down each column, five times slower."""
    result = sums.astype(np.float64)
    for before, row in zip(result[:-1], result[1:], strict=True):
        row += before
    return result
