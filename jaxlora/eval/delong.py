"""The variance of a binary AUROC after DeLong, DeLong and Clarke-Pearson (1988), fast as in Sun and Xu (2014).

Its notes are taken to be independent. Where a patient has several, the bootstrap over patients of `uncertainty` is the
right one.
"""

import numpy as np
from scipy import stats


def delong(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Returns (AUROC, its variance); NaN where a class is absent, and a variance of NaN where one has a single note.

    Args:
      truth: 0/1 `[notes]`. scores: `[notes]`.
    """
    areas, covariance = _areas(truth, scores)
    return float(areas[0]), float(covariance[0, 0])


def compare_delong(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Returns (AUROC of `one` less that of `other`, the two-sided p of no difference), of the same notes.

    Where the two rank every pair of notes alike there is no variance, and p is 1.

    Args:
      truth: 0/1 `[notes]`. one, other: the scores of two models, `[notes]`.
    """
    areas, covariance = _areas(truth, one, other)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if difference == 0 and np.isclose(variance, 0, atol=1e-15):
        return difference, 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return difference, float(2 * stats.norm.sf(np.abs(difference) / np.sqrt(np.maximum(variance, 0))))


def _areas(truth: np.ndarray, *scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (AUROCs `[models]`, their covariance `[models, models]`).

    The place of a positive among all notes, less that among the positives, counts the negatives below it: its
    component, a share of the negatives. Likewise of a negative.
    """
    positive = np.asarray(truth).astype(bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    of_positives, of_negatives = [], []
    for values in scores:
        places = stats.rankdata(values)
        of_positives.append((places[positive] - stats.rankdata(values[positive])) / others)
        of_negatives.append(1 - (places[~positive] - stats.rankdata(values[~positive])) / count)
    covariance = sum(
        np.cov(components) / len(components[0]) if len(components[0]) > 1 else np.nan
        for components in (of_positives, of_negatives)
    )
    return np.mean(of_positives, axis=1), np.reshape(covariance * np.ones((len(scores),) * 2), (len(scores),) * 2)
