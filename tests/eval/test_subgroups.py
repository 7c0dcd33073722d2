"""Subgroups: what they say, and what of them is not said."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxlora.eval import subgroups, uncertainty
from jaxlora.eval.predictions import Predictions


def made(sizes, kind="binary", seed=0, twice=False):
    """Predictions of groups of the given sizes, the last of patients whose group is not known."""
    rng = np.random.default_rng(seed)
    codes = np.repeat([*range(len(sizes) - 1), -1], sizes).astype(np.int16)
    notes = len(codes)
    names = tuple("abcdefgh"[: len(sizes) - 1])
    ids = np.array([f"{i:x}" for i in range(notes)])
    patients = np.array([f"{i // 2 if twice else i:x}" for i in range(notes)])
    if kind == "multilabel":
        labels, logits = rng.integers(0, 2, (notes, 3)).astype(np.uint8), rng.normal(size=(notes, 3))
    else:
        classes = 2 if kind == "binary" else 3
        labels, logits = np.arange(notes) % classes, rng.normal(size=(notes, classes))
    groups = {"site": (names, codes)}
    logits = logits.astype(np.float32)
    return Predictions(kind, tuple("xyz"), ids, patients, labels, logits, groups=groups)


def test_each_group_is_what_its_notes_alone_say():
    p = made([90, 70, 60])
    found = subgroups.evaluate([p], resamples=20)
    assert [(g.name, g.patients, g.notes, g.shown) for g in found] == [
        ("a", 90, 90, True),
        ("b", 70, 70, True),
        ("not known", 60, 60, True),
    ]
    scores = p.logits[:, 1].astype(float) - p.logits[:, 0]
    for group, at in zip(found, (slice(0, 90), slice(90, 160), slice(160, 220)), strict=True):
        assert group.auroc == pytest.approx(roc_auc_score(p.labels[at], scores[at]))
        assert group.positives == p.labels[at].sum() and np.isfinite(group.slope)
    worst = min(group.auroc for group in found)
    assert subgroups.gaps(found, 0.75) == {"site": pytest.approx(0.75 - worst)}


def test_patients_are_counted_and_not_notes():
    found = subgroups.evaluate([made([90, 30, 60], twice=True)], resamples=20)
    assert [(group.patients, group.shown) for group in found] == [(45, True), (None, False), (None, False)]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_other_kinds(kind):
    found = subgroups.evaluate([made([90, 60, 0], kind)], resamples=20)
    assert [group.name for group in found] == ["a", "b"]
    assert all(group.positives is None and np.isfinite([group.auroc, group.slope]).all() for group in found)


def test_the_interval_is_of_the_group():
    p = made([50, 40, 0])
    part = subgroups.subset(p, np.arange(50))
    expected = uncertainty.intervals(part, ["auroc"], 200)["auroc"]
    group = subgroups.evaluate([p], resamples=200)[0]
    assert (group.low, group.high) == pytest.approx(expected) and group.low < group.auroc < group.high


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_group_of_one_outcome_is_not_shown_as_that_would_tell_it(kind):
    p = made([50, 60, 70, 0], kind)
    labels = p.labels.copy()
    labels[:50] = 0
    found = subgroups.evaluate([dataclasses.replace(p, labels=labels)], resamples=20)
    assert [group.shown for group in found] == [False, False, True]  # the second would give the first away
    assert found[0] == subgroups.Group("site", "a", shown=False) and subgroups.gaps(found, 0.5) == {}


def test_several_seeds_are_one_mean():
    """A group's value and its interval are those of the mean over the runs, whatever their order of notes."""
    one, other = made([60, 50, 0]), made([60, 50, 0], seed=1)
    turned = subgroups.subset(other, np.arange(110)[::-1])
    both = subgroups.evaluate([one, turned], resamples=200)
    alone = [subgroups.evaluate([run], resamples=200) for run in (one, other)]
    for group, *each in zip(both, *alone, strict=True):
        assert group.auroc == pytest.approx(np.mean([of.auroc for of in each]))
        assert group.slope == pytest.approx(np.mean([of.slope for of in each]))
        assert group.high - group.low < max(of.high - of.low for of in each)
        assert group.positives == each[0].positives


@pytest.mark.parametrize(
    ("counts", "out"),
    [
        ([50, 40, 30], []),
        ([50, 40, 20], []),
        ([50, 40, 19], [1, 2]),  # alone, 19 would be the total less the others
        ([50, 8, 9], [0, 1, 2]),  # and 8 + 9 would be known to be 17
        ([50, 15, 16], [1, 2]),
        ([50, 40, 3, 4], [1, 2, 3]),
        ([5], [0]),
        ([500, 0], [0, 1]),
        ([], []),
    ],
)
def test_what_is_hidden(counts, out):
    found = subgroups.hidden(np.asarray(counts, int).reshape(-1, 1), 20)
    assert np.flatnonzero(found).tolist() == out


def test_a_cell_that_is_hidden_already_has_company():
    found = subgroups.hidden(np.array([[50], [40], [30]]), 20, known=np.array([False, False, True]))
    assert found.tolist() == [False, True, True]


def test_hidden_cells_cannot_be_reckoned_back():
    """Whatever is hidden of a table with known totals, there are two cells or more of it, with `least` patients."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        counts = rng.integers(0, 60, (rng.integers(2, 7), 2))
        out = subgroups.hidden(counts, 20)
        assert (counts[~out] >= 20).all()
        assert not out.any() or out.all() or (out.sum() > 1 and (counts[out].sum(axis=0) >= 20).all())


def test_few_positives_are_not_counted():
    p = made([200, 100, 80])
    labels = np.zeros(380, int)
    labels[:60], labels[200:230], labels[300:305] = 1, 1, 1
    found = subgroups.evaluate([dataclasses.replace(p, labels=labels)], resamples=20)
    assert [(group.patients, group.positives) for group in found] == [(200, 60), (100, None), (80, None)]


def test_a_hidden_group_says_nothing_of_itself():
    found = subgroups.evaluate([made([90, 12, 0], seed=1)], resamples=20)
    assert [group.shown for group in found] == [False, False]
    for group in found:
        said = dataclasses.asdict(group)
        assert {value for name, value in said.items() if name not in ("attribute", "name")} == {False, None}
    assert subgroups.gaps(found, 0.5) == {}


def test_how_few_are_few_can_be_set():
    assert all(group.shown for group in subgroups.evaluate([made([90, 12, 0])], least=10, resamples=20))


def test_without_groups():
    assert subgroups.evaluate([dataclasses.replace(made([30, 0]), groups={})]) == []
