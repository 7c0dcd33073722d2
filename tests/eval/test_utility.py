"""Net benefit and workload, by hand."""

import numpy as np
import pytest

from jaxlora.eval import utility

TRUTH = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 1])
CHANCES = np.array([0.9, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])


def test_net_benefit_by_hand():
    """At 20 % two of the four that one acts on are ill; a needless action costs a quarter of what a needed one does."""
    curve = utility.decision_curve(TRUTH, CHANCES, np.array([0.05, 0.2, 0.5, 0.95]))
    assert curve.model[1] == pytest.approx(2 / 10 - 2 / 10 * 0.25)
    assert curve.everyone[1] == pytest.approx(3 / 10 - 7 / 10 * 0.25)
    assert curve.model[0] == pytest.approx(curve.everyone[0])  # all are at or above 5 %
    assert curve.model[2] == pytest.approx(1 / 10) and curve.model[3] == 0


def test_net_benefit_is_its_definition_at_every_threshold():
    rng = np.random.default_rng(0)
    chances = np.round(rng.random(300), 2)  # many are exactly a threshold
    truth = (rng.random(300) < chances).astype(int)
    curve = utility.decision_curve(truth, chances)
    for threshold, benefit in zip(curve.thresholds, curve.model, strict=True):
        acted = chances >= threshold
        price = threshold / (1 - threshold)
        assert benefit == pytest.approx(((acted & (truth == 1)).sum() - (acted & (truth == 0)).sum() * price) / 300)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, np.nan])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match="thresholds"):
        utility.decision_curve(TRUTH, CHANCES, np.array([0.5, threshold]))


def test_workload_by_hand():
    work = utility.workload(TRUTH, CHANCES, 0.2)
    assert (work.alerts, work.right, work.needless, work.missed) == pytest.approx((40, 20, 20, 10))
    assert (work.sensitivity, work.specificity) == pytest.approx((2 / 3, 5 / 7))
    assert (work.ppv, work.npv) == pytest.approx((1 / 2, 5 / 6))
    assert work.net_benefit == pytest.approx(0.15)
    none = utility.workload(TRUTH, CHANCES, 0.95)
    assert none.alerts == 0 and np.isnan(none.ppv) and none.npv == pytest.approx(0.7)
