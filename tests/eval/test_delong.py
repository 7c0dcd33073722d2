"""DeLong's variance against the plain definition, note by note, and the bootstrap."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from jaxlora.eval.delong import compare_delong, delong


def plain(truth, *scores):
    """AUROCs and their covariance from every pair of a positive and a negative, as DeLong et al. (1988) write it."""
    areas, rows, columns = [], [], []
    for values in scores:
        x, y = values[truth == 1], values[truth == 0]
        kernel = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
        areas.append(kernel.mean())
        rows.append(kernel.mean(axis=1))
        columns.append(kernel.mean(axis=0))
    count = len(scores)
    covariance = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            s10 = ((rows[i] - areas[i]) * (rows[j] - areas[j])).sum() / (len(rows[i]) - 1)
            s01 = ((columns[i] - areas[i]) * (columns[j] - areas[j])).sum() / (len(columns[i]) - 1)
            covariance[i, j] = s10 / len(rows[i]) + s01 / len(columns[i])
    return np.array(areas), covariance


@pytest.fixture(params=["random", "tied"])
def two_models(request):
    rng = np.random.default_rng(0)
    truth = (rng.random(120) < 0.3).astype(int)
    one = rng.normal(size=120) + truth
    other = one + rng.normal(size=120)
    return (truth, one, other) if request.param == "random" else (truth, np.round(one), np.round(other))


def test_equals_the_plain_definition(two_models):
    truth, one, other = two_models
    areas, covariance = plain(truth, one, other)
    assert delong(truth, one) == pytest.approx((areas[0], covariance[0, 0]), abs=1e-14)
    difference, p = compare_delong(truth, one, other)
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert difference == pytest.approx(areas[0] - areas[1], abs=1e-14)
    assert p == pytest.approx(2 * stats.norm.sf(abs(difference) / spread), rel=1e-9)
    assert delong(truth, one)[0] == pytest.approx(roc_auc_score(truth, one), abs=1e-14)


def test_by_hand():
    # Of the four pairs one is wrong: the components are 1, 1/2 of the positives, and the same of the negatives.
    area, variance = delong(np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 2.0, 4.0]))
    assert (area, variance) == pytest.approx((0.75, 0.125 / 2 + 0.125 / 2))


def test_where_the_two_rank_alike():
    truth, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.5, 0.9])
    assert compare_delong(truth, scores, 10 * scores) == (0, 1)


def test_degenerate():
    assert np.isnan(delong(np.zeros(4, int), np.arange(4.0))).all()
    assert np.isnan(compare_delong(np.ones(4, int), np.arange(4.0), np.arange(4.0))).all()
    area, variance = delong(np.array([1, 0, 0]), np.array([1.0, 0.0, 2.0]))
    assert area == 0.5 and np.isnan(variance)
    assert delong(np.array([1, 1, 0, 0]), np.array([3.0, 2.0, 1.0, 0.0])) == (1, 0)


def test_a_constant_difference_is_certain():
    truth, scores = np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 2.0, 3.0])
    assert compare_delong(truth, scores, -scores) == (1, 0)
