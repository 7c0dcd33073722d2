"""What is true, what is chosen, and both: the tallies of weighted notes behind F1 and its kin."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array, vstack

from jaxlora.eval.weights import Weights


def tallies(truth: np.ndarray, chosen: np.ndarray) -> Callable[[Weights], list[np.ndarray]]:
    """Returns what gives the weights of the notes that are chosen and true, chosen, and true, of each label,
    `[labels, replicates]`, and of all notes, `[1, replicates]`.

    Args:
      truth, chosen: 0/1 `[notes, labels]`.
    """
    parts = [np.logical_and(truth, chosen), chosen, truth, np.ones((len(truth), 1))]
    rows = vstack([csr_array(part.T.astype(np.float32)) for part in parts], format="csr")
    borders = np.cumsum([part.shape[1] for part in parts])[:-1]
    return lambda weights: np.split(weights.sums(rows).astype(np.float64), borders)


def f1(both: np.ndarray, chosen: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns 2 both / (chosen + true), NaN where nothing is either."""
    with np.errstate(invalid="ignore"):
        return np.divide(2 * both, chosen + true)


def mean(each: np.ndarray) -> np.ndarray:
    """Returns the mean over the first axis of what is not NaN; NaN where all is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(each, axis=0) if len(each) else np.full(each.shape[1:], np.nan)
