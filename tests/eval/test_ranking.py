"""AUROC and average precision of weighted notes against scikit-learn's, with the weights as its sample_weight."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from jaxlora.eval.ranking import Ranking
from jaxlora.eval.weights import Drawn, drawn, left_out, unit

NOTES = 60


def scores_of(case, rng):
    if case == "random":
        return rng.normal(size=NOTES).astype(np.float32)
    if case == "tied":
        return rng.integers(5, size=NOTES).astype(np.float64)
    return np.zeros(NOTES) if case == "constant" else np.round(rng.normal(size=NOTES), 1)


def expected(truth, scores, weights):
    """scikit-learn's AUROC and average precision of each replicate; NaN where one class has no weight."""
    result = np.full((2, weights.shape[1]), np.nan)
    for number, weight in enumerate(weights.T):
        if len(np.unique(truth[weight > 0])) == 2:
            result[0, number] = sk.roc_auc_score(truth, scores, sample_weight=weight)
            result[1, number] = sk.average_precision_score(truth, scores, sample_weight=weight)
    return result


@pytest.mark.parametrize("case", ["random", "tied", "constant", "some ties"])
@pytest.mark.parametrize("positives", [30, 1, NOTES - 1])
def test_equals_scikit_learn(case, positives):
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(NOTES) < positives).astype(np.uint8)
    scores, weights = scores_of(case, rng), rng.poisson(1, (NOTES, 40)).astype(np.float32)
    found = Ranking(truth, scores, np.arange(NOTES), NOTES)(Drawn(weights))
    wanted = expected(truth, scores, weights)
    assert np.isnan(wanted).any() == (positives != 30)  # in some replicates a single note is not drawn
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_perfect_and_inverted_scores():
    truth = np.array([0, 0, 1, 1, 1])
    for scores, auroc in ((truth, 1), (-truth, 0)):
        found = Ranking(truth, scores.astype(float), np.arange(5), 5)(unit(5))[:, 0]
        assert found == pytest.approx([auroc, sk.average_precision_score(truth, scores)])


def test_positives_alone_have_no_value():
    assert np.isnan(Ranking(np.ones(3), np.arange(3.0), np.arange(3), 3)(unit(3))).all()


def test_elements_share_the_weight_of_their_note():
    rng = np.random.default_rng(1)
    truth, scores = rng.integers(2, size=(NOTES, 3)), np.round(rng.normal(size=(NOTES, 3)), 1)
    weights = rng.poisson(1, (NOTES, 7)).astype(np.float32)
    of_note = np.repeat(np.arange(NOTES), 3)
    found = Ranking(truth.ravel(), scores.ravel(), of_note, NOTES)(Drawn(weights))
    np.testing.assert_allclose(found, expected(truth.ravel(), scores.ravel(), weights[of_note]), atol=1e-12)


def test_many_positives_are_done_in_parts(monkeypatch):
    rng = np.random.default_rng(2)
    truth, scores = rng.integers(2, size=NOTES), rng.normal(size=NOTES)
    patients = rng.integers(20, size=NOTES)
    for make in (lambda: next(drawn(patients, 50, 0)), lambda: next(left_out(patients))):
        monkeypatch.undo()
        whole = Ranking(truth, scores, np.arange(NOTES), NOTES)(make())
        monkeypatch.setattr("jaxlora.eval.ranking._ENTRIES", 1)
        assert make().count > 16
        np.testing.assert_array_equal(Ranking(truth, scores, np.arange(NOTES), NOTES)(make()), whole)


def test_leaving_out_a_patient_is_leaving_out_its_notes():
    rng = np.random.default_rng(3)
    truth, scores = rng.integers(2, size=NOTES), np.round(rng.normal(size=NOTES), 1)
    patients = np.array([f"p{number:02d}" for number in rng.integers(20, size=NOTES)])
    found = Ranking(truth, scores, np.arange(NOTES), NOTES)(next(left_out(patients)))
    for number, patient in enumerate(np.unique(patients)):
        rest = patients != patient
        wanted = sk.roc_auc_score(truth[rest], scores[rest]), sk.average_precision_score(truth[rest], scores[rest])
        assert found[:, number] == pytest.approx(wanted, abs=1e-12)


def test_a_patient_is_drawn_whole_and_alike_wherever_it_occurs():
    patients = np.array(["b", "a", "b", "c", "a", "d"])
    blocks = list(drawn(patients, 3000, seed=1))
    weights = np.concatenate([of.sums(np.eye(6, dtype=np.float32)) for of in blocks], axis=1)
    assert weights.shape == (6, 3000) and len(blocks) > 1
    np.testing.assert_array_equal(weights[[0, 1]], weights[[2, 4]])
    of_patients = weights[[1, 0, 3, 5]]
    shares = [np.mean(of_patients == times) for times in range(5)]
    assert shares == pytest.approx(stats.poisson.pmf(range(5), 1), abs=0.015)
    assert np.abs(np.corrcoef(of_patients) - np.eye(4)).max() < 0.08  # four times its standard error
    for other in (patients[::-1], np.array(["e", "c", "b"])):
        found = np.concatenate([of.sums(np.eye(len(other))) for of in drawn(other, 3000, seed=1)], axis=1)
        for name, row in zip(other, found, strict=True):
            assert name == "e" or (row == weights[patients == name][0]).all()
    other = np.concatenate([of.sums(np.eye(6)) for of in drawn(patients, 3000, seed=2)], axis=1)
    assert abs(np.corrcoef(other[0], weights[0])[0, 1]) < 0.08
