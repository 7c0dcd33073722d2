"""Intervals and comparisons against scipy's bootstrap, plain resampling, and simulations whose truth is known."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from jaxlora.errors import UserError
from jaxlora.eval import metrics, uncertainty
from jaxlora.eval.delong import compare_delong
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.uncertainty import (
    Interval,
    average,
    check_same,
    compare,
    holm,
    interval,
    intervals,
    over_seeds,
    sampled,
)
from jaxlora.eval.weights import drawn


def names_of(numbers):
    return np.array([f"{number:016x}" for number in numbers])


def binary(notes=150, seed=0, gap=1.0, patients=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=notes)
    logits = np.stack([np.zeros(notes), rng.normal(size=notes) + gap * labels], axis=1).astype(np.float32)
    ids = names_of(range(notes))
    patients = ids if patients is None else names_of(patients)
    return Predictions("binary", ("no", "yes"), ids, patients, labels, logits)


def test_an_interval_ends_where_its_metric_does():
    """With few positives, centred replicates of a high AUROC pass 1."""
    for seed in range(12):
        p = binary(40, seed)
        p = dataclasses.replace(p, labels=np.where(np.cumsum(p.labels) <= 3, p.labels, 0))
        for low, high in intervals(p, ("auroc", "auprc", "f1"), 200).values():
            assert 0 <= low <= high <= 1
        assert over_seeds([p, p], "auprc", 200).high <= 1


def again(p, seed, noise=0.7):
    """The same notes as another run sees them."""
    rng = np.random.default_rng(seed)
    logits = p.logits + noise * rng.normal(size=p.logits.shape).astype(np.float32)
    return dataclasses.replace(p, logits=logits)


def shuffled(p, seed=9):
    order = np.random.default_rng(seed).permutation(len(p.ids))
    arrays = {name: getattr(p, name)[order] for name in ("ids", "patients", "labels", "logits")}
    return dataclasses.replace(p, **arrays)


def area(labels, scores):
    """The AUROC along the last axis, by ranks."""
    positives = labels.sum(axis=-1)
    places = (stats.rankdata(scores, axis=-1) * labels).sum(axis=-1) - positives * (positives + 1) / 2
    return places / (positives * (labels.shape[-1] - positives))


@pytest.mark.parametrize("kind", ["percentile", "bca"])
@pytest.mark.parametrize("name", ["auroc", "accuracy"])
def test_equals_scipy_where_a_patient_is_a_note(kind, name):
    p = binary(gap=1.5)
    scores = np.diff(p.logits)[:, 0]

    def metric(i, axis):
        return area(p.labels[i], scores[i]) if name == "auroc" else (p.labels[i] == (scores[i] > 0)).mean(axis=-1)

    found = intervals(p, [name], resamples=4000, kind=kind)[name]
    theirs = stats.bootstrap(
        (np.arange(150),), metric, vectorized=True, method=kind, n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert found == pytest.approx(tuple(theirs), abs=0.06 * (theirs.high - theirs.low))  # of 4,000 draws, twice


def test_bca_is_scipys_arithmetic_on_the_same_replicates():
    p = binary(60, gap=1.5)
    scores = p.logits[:, 1] - p.logits[:, 0]

    def auroc(i, axis=-1):
        return area(p.labels[i], scores[i])

    theirs = stats.bootstrap(
        (np.arange(60),), auroc, vectorized=True, method="BCa", n_resamples=500, rng=np.random.default_rng(0)
    )
    without = np.array([auroc(np.delete(np.arange(60), i)) for i in range(60)])
    found = uncertainty._bca(theirs.bootstrap_distribution, auroc(np.arange(60)), without)
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=1e-12)


def test_patients_are_drawn_and_not_notes():
    one = binary(100)
    doubled = dataclasses.replace(
        one, **{name: np.repeat(getattr(one, name), 3, axis=0) for name in ("patients", "labels", "logits")}
    )
    doubled = dataclasses.replace(doubled, ids=names_of(range(300)))
    for kind in uncertainty.KINDS:
        of_one, of_three = (intervals(p, ["auroc", "f1"], 300, kind=kind) for p in (one, doubled))
        for name in of_one:  # three times the same note of a patient tells no more than once
            assert of_three[name] == pytest.approx(of_one[name], abs=1e-9)
    alone = dataclasses.replace(doubled, patients=doubled.ids)
    narrow, wide = (np.ptp(intervals(p, ["auroc"], 500)["auroc"]) for p in (alone, doubled))
    assert narrow < 0.75 * wide


def test_the_seed_decides():
    p = binary()
    assert intervals(p, ["auroc"], 200, seed=3) == intervals(shuffled(p), ["auroc"], 200, seed=3)
    assert intervals(p, ["auroc"], 200, seed=3) != intervals(p, ["auroc"], 200, seed=4)


def test_what_cannot_be_ranked_has_no_interval():
    p = binary()
    p = dataclasses.replace(p, labels=np.zeros_like(p.labels))
    for kind in uncertainty.KINDS:
        assert np.isnan(intervals(p, ["auroc"], 50, kind=kind)["auroc"]).all()
        assert intervals(dataclasses.replace(p, logits=np.array([[1.0, 0]] * 150)), ["accuracy"], 50, kind=kind) == {
            "accuracy": Interval(1.0, 1.0)
        }


def test_a_comparison_is_of_the_same_draws():
    p = binary(300, patients=np.arange(300) // 2)
    same = compare(p, shuffled(p), "auroc", 200)
    assert same == (0, 0, 0, 1)
    close = compare(p, again(p, 1, 0.05), "auroc", 500)
    assert close.high - close.low < 0.25 * np.ptp(intervals(p, ["auroc"], 500)["auroc"])
    none = dataclasses.replace(p, labels=np.zeros_like(p.labels))
    assert np.isnan(compare(none, shuffled(none), "auroc", 20)).all()
    worse = compare(p, again(p, 1, 3.0), "auroc", 500)
    assert worse.low > 0 and worse.p < 1e-4  # less than a share of the draws can be
    back = compare(again(p, 1, 3.0), p, "auroc", 500)
    assert back == pytest.approx((-worse.difference, -worse.high, -worse.low, worse.p))
    assert worse.difference == pytest.approx(
        sk.roc_auc_score(p.labels, p.logits[:, 1] - p.logits[:, 0])
        - sk.roc_auc_score(p.labels, np.diff(again(p, 1, 3.0).logits)[:, 0]),
        abs=1e-7,
    )


def test_delongs_interval_is_the_bootstraps_where_a_patient_is_a_note():
    p = binary(400)
    found = uncertainty.delong_interval(p.labels, np.diff(p.logits)[:, 0])
    assert found == pytest.approx(intervals(p, ["auroc"], 4000)["auroc"], abs=0.1 * np.ptp(found))
    by_hand = uncertainty.delong_interval(np.array([0, 0, 1, 1]), np.array([1.0, 3, 2, 4]))  # a variance of 1/8
    assert by_hand == pytest.approx((0.75 - 1.959964 / np.sqrt(8), 1), abs=1e-6)


def test_a_comparison_agrees_with_delong_where_a_patient_is_a_note():
    p = binary(400)
    other = again(p, 2)
    scores = [np.diff(of.logits)[:, 0] for of in (p, other)]
    difference, pvalue = compare_delong(p.labels, *scores)
    found = compare(p, other, "auroc", 4000)
    assert found.difference == pytest.approx(difference, abs=1e-6)
    width = 2 * 1.96 * abs(difference) / stats.norm.isf(pvalue / 2)
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert stats.norm.isf(found.p / 2) == pytest.approx(stats.norm.isf(pvalue / 2), rel=0.05)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda p: dataclasses.replace(p, ids=names_of(range(1, 151))), "notes"),
        (lambda p: dataclasses.replace(p, patients=p.patients[::-1]), "patients"),
        (lambda p: dataclasses.replace(p, labels=1 - p.labels), "true labels"),
        (lambda p: dataclasses.replace(p, names=("no", "maybe")), "labels"),
        (lambda p: dataclasses.replace(p, kind="multiclass"), "kinds"),
    ],
)
def test_other_notes_are_refused(change, what):
    p = binary()
    with pytest.raises(UserError, match=f"^predictions: the two runs have other {what}; compare runs evaluated on one"):
        compare(p, change(p), "auroc", 10)


def test_entities_are_matched_whatever_the_order_of_the_notes():
    ids, spans = names_of(range(3)), np.array([[0, 0, 5, 0], [2, 1, 3, 0], [2, 4, 6, 0]])
    p = Predictions("tokens", ("O", "B-a", "I-a"), ids, ids, found=spans, truth=spans)
    moved = spans[:, :] * [-1, 1, 1, 1] + [2, 0, 0, 0]
    other = dataclasses.replace(p, ids=ids[::-1], patients=ids[::-1], found=moved[:1], truth=moved)
    check_same(p, other)
    with pytest.raises(UserError, match="other true labels"):
        check_same(p, dataclasses.replace(other, truth=spans))
    assert compare(p, other, "f1", 50).difference == pytest.approx(1 - 2 / 4)


def test_seeds_apart_from_sampling():
    p = binary(300)
    runs = [p, again(p, 1), shuffled(again(p, 2))]
    found = over_seeds(runs, "auroc", 500)
    each = [sk.roc_auc_score(run.labels, np.diff(run.logits)[:, 0]) for run in runs]
    assert found.mean == pytest.approx(np.mean(each), abs=1e-6) and found.runs == 3
    assert found.sd == pytest.approx(np.std(each, ddof=1), abs=1e-6)
    assert found.low < found.mean < found.high
    alone = over_seeds([p], "auroc", 500)
    assert np.isnan(alone.sd) and (alone.low, alone.high) == intervals(p, ["auroc"], 500)["auroc"]


def of_tasks(rng, patients=80, separation=1.0):
    """Two tasks of the same hospital: half of the patients of one are the other's, where their scores err alike."""
    of_patient = rng.normal(size=2 * patients)
    for start in (0, patients // 2):
        who = np.repeat(np.arange(start, start + patients), rng.integers(1, 4, size=patients))
        labels = rng.integers(2, size=len(who))
        errors = np.sqrt(0.7) * of_patient[who] * np.where(labels, 1, -1) + np.sqrt(0.3) * rng.normal(size=len(who))
        logits = np.stack([np.zeros(len(who)), errors + separation * labels], axis=1).astype(np.float32)
        ids = names_of(range(len(who)))
        yield Predictions("binary", ("no", "yes"), ids, names_of(who), labels, logits)


def test_an_average_over_tasks_by_hand():
    """The patients of all tasks drawn once, each note written down as often as its patient was drawn."""
    tasks, areas = list(of_tasks(np.random.default_rng(3))), []
    union = np.unique(np.concatenate([p.patients for p in tasks]))
    every = np.concatenate([weights.sums(np.eye(len(union))) for weights in drawn(union, 120, 0)], axis=1)
    for times in every.astype(int).T:
        of = dict(zip(union, times, strict=True))
        rows = [[i for i, who in enumerate(p.patients) for _ in range(of[who])] for p in tasks]
        each = [sk.roc_auc_score(p.labels[i], p.logits[i, 1]) for p, i in zip(tasks, rows, strict=True)]
        areas.append(sum(each) / 2)
    found = average([sampled(p, "auroc", 120) for p in tasks])
    value = np.mean([sk.roc_auc_score(p.labels, p.logits[:, 1]) for p in tasks])
    assert found.draws == pytest.approx(areas, abs=1e-7) and found.value == pytest.approx(value, abs=1e-7)
    centred = np.array(areas) - np.mean(areas) + value
    assert interval(found) == pytest.approx(tuple(np.quantile(centred, [0.025, 0.975])), abs=1e-7)


def test_an_average_of_one_task_is_that_task_and_of_the_same_patients_no_surer():
    one, other = of_tasks(np.random.default_rng(4))
    alone = intervals(one, ["auroc"], 300)["auroc"]
    assert interval(average([sampled(one, "auroc", 300)])) == alone
    assert interval(average([sampled(one, "auroc", 300), sampled(shuffled(one), "auroc", 300)])) == pytest.approx(alone)
    strangers = dataclasses.replace(one, patients=np.char.add("other", one.patients))
    apart = np.ptp(interval(average([sampled(one, "auroc", 2000), sampled(strangers, "auroc", 2000)])))
    assert apart == pytest.approx(np.ptp(intervals(one, ["auroc"], 2000)["auroc"]) / np.sqrt(2), rel=0.1)


@pytest.mark.slow
def test_an_average_covers_the_truth_in_95_of_100_cohorts():
    rng, truth, inside, apart = np.random.default_rng(6), stats.norm.cdf(1 / np.sqrt(2)), 0, 0
    for seed in range(600):
        parts = [sampled(p, "auroc", 400, seed) for p in of_tasks(rng)]
        low, high = interval(average(parts))
        inside += low <= truth <= high
        low, high = interval(average([parts[0], parts[1]._replace(draws=parts[1].draws[::-1])]))  # drawn by task
        apart += low <= truth <= high
    assert 0.93 <= inside / 600 <= 0.97 and apart < inside


def test_holm_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04 x 1, none less than the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([]) == []


def test_mistakes_are_told_in_one_line():
    with pytest.raises(UserError, match="^intervals: no kind basic; choose one of centred, percentile, bca$"):
        intervals(binary(), ["auroc"], 10, kind="basic")
    with pytest.raises(UserError, match="^metrics: binary predictions have no kappa to resample; they have accuracy, "):
        intervals(binary(), ["kappa"], 10)


def clustered(rng, patients=200, separation=1.0, shared=0.5):
    """Notes of patients, 1 to 4 each, whose outcomes and scores agree within a patient; the AUROC of notes of different
    patients is Phi(separation / sqrt 2)."""
    of = np.repeat(np.arange(patients), rng.integers(1, 5, size=patients))
    risk = rng.random(patients)[of]
    labels = (rng.random(len(of)) < risk).astype(np.int64)
    noise = np.sqrt(shared) * rng.normal(size=patients)[of] + np.sqrt(1 - shared) * rng.normal(size=len(of))
    logits = np.stack([np.zeros(len(of)), noise + separation * labels], axis=1).astype(np.float32)
    ids = names_of(range(len(of)))
    return Predictions("binary", ("no", "yes"), ids, names_of(of), labels, logits)


def coverage(kind, cohorts=1000, by_note=False):
    """The share of cohorts in whose interval the true AUROC is."""
    rng, truth, inside = np.random.default_rng(5), stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(cohorts):
        p = clustered(rng)
        p = dataclasses.replace(p, patients=p.ids) if by_note else p
        low, high = intervals(p, ["auroc"], 500, seed, kind)["auroc"]
        inside += low <= truth <= high
    return inside / cohorts


@pytest.mark.parametrize(
    "kind", ["centred", *(pytest.param(of, marks=pytest.mark.slow) for of in ("percentile", "bca"))]
)
def test_covers_the_truth_in_95_of_100_cohorts(kind):
    assert 0.93 <= coverage(kind) <= 0.97


@pytest.mark.slow
def test_p_of_runs_that_are_alike_is_below_a_twentieth_in_a_twentieth_of_cohorts():
    rng, low = np.random.default_rng(8), 0
    for seed in range(600):
        p = clustered(rng)
        low += compare(again(p, 2 * seed), again(p, 2 * seed + 1), "auroc", 300, seed).p < 0.05
    assert 0.03 <= low / 600 <= 0.07


@pytest.mark.slow
def test_notes_drawn_one_by_one_would_not_cover_it():
    assert coverage("centred", by_note=True) < 0.92


def rare_labels(rng, notes=200, labels=60):
    truth = np.zeros((notes, labels), np.uint8)
    for column in truth.T:
        column[rng.choice(notes, 3, replace=False)] = 1
    logits = (rng.normal(size=truth.shape) + truth).astype(np.float32)
    ids = names_of(range(notes))
    return Predictions("multilabel", tuple(map(str, range(labels))), ids, ids, truth, logits)


def test_average_precision_of_rare_labels_is_to_be_centred():
    rng = np.random.default_rng(0)
    cohorts = [rare_labels(rng) for _ in range(40)]
    values = np.array([metrics.auprc(p.labels, p.logits) for p in cohorts])
    covered = {}
    for kind in ("percentile", "centred"):
        found = [intervals(p, ["auprc"], 200, kind=kind)["auprc"] for p in cohorts]
        covered[kind] = np.mean([low <= values.mean() <= high for low, high in found])
        inside = [low < value < high for value, (low, high) in zip(values, found, strict=True)]
        assert all(inside) == (kind == "centred")
    assert covered["centred"] >= 0.9 and covered["percentile"] <= 0.8


def test_bca_has_nothing_to_correct_by_where_every_replicate_is_above():
    assert np.isnan(uncertainty._bca(np.array([0.3, 0.4]), 0.2, np.array([0.1, 0.3]))).all()
