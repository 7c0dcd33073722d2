"""Replicates beside the predictions that they are of."""

import dataclasses

import numpy as np
import pytest

from jaxlora.errors import UserError
from jaxlora.eval import uncertainty
from jaxlora.eval.predictions import Predictions
from jaxlora.reproduce import replicates
from jaxlora.reproduce.replicates import FILE, metric_of, of_run


def predicted(kind="multilabel", seed=0):
    rng, ids = np.random.default_rng(seed), np.arange(80).astype(str)
    labels = rng.integers(2, size=(80, 3) if kind == "multilabel" else 80)
    logits = rng.normal(size=(80, 3 if kind == "multilabel" else 2)).astype(np.float32)
    names = tuple(map(str, range(logits.shape[1])))
    return Predictions(kind, names, ids, (np.arange(80) // 2).astype(str), labels, logits)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Gives the replicates of a run's folder and how many times the patients have been drawn for it."""
    draws = []
    sampled = uncertainty.sampled

    def counted(*given):
        draws.append(given)
        return sampled(*given)

    monkeypatch.setattr(uncertainty, "sampled", counted)

    def make(p, mode="correct", resamples=30):
        if p is not None:
            p.save(tmp_path / "predictions-test.npz")
        return of_run(tmp_path, mode, resamples), len(draws)

    return make


def test_they_are_drawn_once_and_again_when_what_they_are_of_changes(kept):
    p = predicted()
    first, times = kept(p)
    again, same = kept(p)
    assert (times, same) == (1, 1)
    assert again.sampled.draws.tolist() == first.sampled.draws.tolist() and again[1:] == first[1:]
    found = uncertainty.interval(again.sampled)
    assert found == uncertainty.intervals(p, ["auroc"], 30)["auroc"]
    assert kept(None, mode="paper")[0].sampled.name == "auroc_paper"
    assert len(kept(None, resamples=40)[0].sampled.draws) == 40
    other, times = kept(dataclasses.replace(p, logits=p.logits[:, ::-1]), resamples=40)
    assert times == 4 and other.sampled.value != first.sampled.value


def test_notes_are_the_same_in_whatever_order_and_others_are_not(kept):
    p = predicted("binary")
    notes = kept(p)[0].notes
    order = np.random.default_rng(1).permutation(80)
    fields = {name: getattr(p, name)[order] for name in ("ids", "patients", "labels", "logits")}
    assert kept(dataclasses.replace(p, **fields))[0].notes == notes
    for change in (
        {"labels": 1 - p.labels},
        {"patients": p.ids},
        {"ids": np.char.add("x", p.ids)},
        {"names": ("a", "b")},
    ):
        assert kept(dataclasses.replace(p, **change))[0].notes != notes


def test_damage_is_told_with_its_remedy(kept, tmp_path):
    kept(predicted())
    (tmp_path / FILE).write_bytes(b"PK no more")
    with pytest.raises(UserError, match=f"{FILE} is damaged; delete it, and the same command makes it again$"):
        kept(None)
    (tmp_path / "predictions-test.npz").write_bytes(b"PK no more")
    with pytest.raises(
        UserError, match="predictions-test.npz is damaged; run `jaxlora evaluate` on that workdir again$"
    ):
        kept(None)


def test_nobody_else_may_read_them(kept, tmp_path):
    kept(predicted())
    assert (tmp_path / replicates.FILE).stat().st_mode & 0o077 == 0


def test_the_metric_is_the_papers():
    assert metric_of("binary", "paper") == metric_of("binary", "correct") == "auroc"
    assert metric_of("multiclass", "correct") == "auroc_ovo" and metric_of("lm", "correct") == "perplexity"
    assert (metric_of("multilabel", "correct"), metric_of("multilabel", "paper")) == ("auroc", "auroc_paper")
