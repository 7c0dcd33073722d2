"""Rows against each other: differences, their intervals, and every p, from the predictions of finished runs."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxlora.errors import UserError
from jaxlora.eval import uncertainty
from jaxlora.eval.delong import compare_delong
from jaxlora.eval.predictions import Predictions
from jaxlora.reproduce.comparisons import compared
from jaxlora.reproduce.results import AVERAGE, Pair
from jaxlora.reproduce.runs import Job
from jaxlora.reproduce.tables import TABLES, TASK_COLUMNS, TASKS, TECHNIQUE_COLUMNS
from jaxlora.reproduce.work import SCORE

LINES = {line.name: line for line in TABLES[3].rows}
SKILL = {"head_only": 0.2, "lora": 1.5, "frozen": 0.4}
COUNTS = {"pmv": ("binary", 2), "mor": ("binary", 2), "los": ("multiclass", 4), "diag": ("multilabel", 5)}
COUNTS["proc"] = COUNTS["diag"]


def predicted(row, task, seed):
    """Notes of 60 patients; the better the row, the higher the logit of what is true."""
    truth, noise = np.random.default_rng(0), np.random.default_rng([seed, *map(ord, row)])
    kind, count = COUNTS[task]
    labels = (truth.random((120, count)) < 0.4).astype(np.uint8) if kind == "multilabel" else np.arange(120) % count
    hot = labels if kind == "multilabel" else np.eye(count)[labels]
    logits = (noise.normal(size=hot.shape) + SKILL[row] * hot).astype(np.float32)
    order = noise.permutation(120)  # every run has the notes in an order of its own
    ids, patients = np.arange(120).astype(str), (np.arange(120) // 2).astype(str)
    of_notes = (of[order] for of in (ids, patients, labels, logits))
    return Predictions(kind, tuple(map(str, range(count))), *of_notes)


@pytest.fixture
def finished(tmp_path):
    """Makes the finished runs of a row: `finished(row, tasks, seeds)`."""

    def make(row, tasks=tuple(TASKS), seeds=(0,)):
        jobs = []
        for task in tasks:
            for seed in seeds:
                config = ConfigDict({"mode": "correct"})
                job = Job(LINES[row], task, seed, config, tmp_path / row / task / f"seed-{seed}")
                job.folder.mkdir(parents=True)
                predicted(row, task, seed).save(job.folder / "predictions-test.npz")
                score = {"cells": {task: {"value": 50.0, "low": 0, "high": 0}}, "adapters": []}
                (job.folder / SCORE).write_text(json.dumps(score))
                jobs.append(job)
        return jobs

    return make


def test_a_difference_is_that_of_the_runs(finished):
    jobs = {row: finished(row, ("mor", "los")) for row in ("lora", "head_only", "frozen")}
    (first, second) = compared(TABLES[3].pairs, jobs, TASK_COLUMNS[1:3], 60)
    assert (first.one, first.other, first.base) == ("lora", "head_only", "LLaMA")
    assert (second.one, second.other) == ("frozen", "head_only")  # the other pairs have a row that was not run
    for pair in (first, second):
        assert [difference.task for difference in pair.differences] == ["mor", "los"]
        for difference, metric in zip(pair.differences, ("auroc", "auroc_ovo"), strict=True):
            runs = [predicted(row, difference.task, 0) for row in (pair.one, pair.other)]
            wanted = uncertainty.compare(*runs, metric, 60)
            assert (difference.value, difference.low, difference.high) == pytest.approx([100 * x for x in wanted[:3]])
            assert difference.p == pytest.approx(wanted.p)
    family = [difference for pair in (first, second) for difference in pair.differences]
    for of in family:  # the largest of what the smaller ones are times how many are left
        steps = [other.p * sum(rest.p >= other.p for rest in family) for other in family if other.p <= of.p]
        assert of.holm == pytest.approx(min(1, max(steps)))


def test_delong_is_of_binary_tasks_and_the_first_seed(finished):
    jobs = {row: finished(row, ("mor", "los"), (3, 4)) for row in ("lora", "head_only")}
    ((mortality, stay),) = (pair.differences for pair in compared(TABLES[3].pairs, jobs, TASK_COLUMNS[1:3], 20))
    runs = [predicted(row, "mor", 3) for row in ("lora", "head_only")]
    scores = [dict(zip(p.ids, p.logits[:, 1] - p.logits[:, 0], strict=True)) for p in runs]
    labels = dict(zip(runs[0].ids, runs[0].labels, strict=True))
    wanted = compare_delong(np.array(list(labels.values())), *(np.array([of[id] for id in labels]) for of in scores))
    assert mortality.delong == pytest.approx(wanted[1], rel=1e-6) and stay.delong is None
    assert mortality.delong_holm == mortality.delong and stay.delong_holm is None  # it is the only one of its kind


def test_delongs_tests_are_a_family_of_their_own(finished):
    jobs = {row: finished(row, ("mor", "los")) for row in ("lora", "head_only", "frozen")}
    pairs = compared(TABLES[3].pairs, jobs, TASK_COLUMNS[1:3], 20)
    found = [pair.differences[0] for pair in pairs]
    assert [of.delong_holm for of in found] == uncertainty.holm([of.delong for of in found])
    assert len(found) == 2 and max(of.delong_holm / of.delong for of in found) == 2


def test_seeds_are_averaged_on_both_sides_and_tasks_in_the_same_draws(finished):
    jobs = {row: finished(row, seeds=(0, 1)) for row in ("lora", "head_only")}
    (pair,) = compared(TABLES[3].pairs, jobs, TASK_COLUMNS, 25)
    average = pair.of(AVERAGE)
    metrics = {"pmv": "auroc", "mor": "auroc", "los": "auroc_ovo", "diag": "auroc", "proc": "auroc"}
    each = []
    for row in ("lora", "head_only"):
        runs = [uncertainty.sampled(predicted(row, task, seed), metrics[task], 25) for task in TASKS for seed in (0, 1)]
        each.append(uncertainty.average(runs))
    wanted = uncertainty.difference(*each)
    assert (average.value, average.low, average.high) == pytest.approx([100 * x for x in wanted[:3]])
    assert average.delong is None and len(pair.differences) == 6
    assert average.value == pytest.approx(np.mean([of.value for of in pair.differences[:5]]))


def test_perplexities_are_compared_as_a_ratio(tmp_path):
    rng, ids, jobs = np.random.default_rng(0), np.arange(40).astype(str), {}
    tokens, nll = rng.integers(20, 60, 40).astype(np.float32), {}
    for name, worse in (("lora", 0.0), ("prefix", 0.3)):
        line = next(line for line in TABLES[2].rows if line.name == name)
        job = Job(line, "", 0, ConfigDict({"mode": "correct"}), tmp_path / name)
        nll[name] = tokens * (1 + worse + 0.01 * rng.normal(size=40)).astype(np.float32)
        Predictions("lm", (), ids, ids, nll=nll[name], base_nll=nll[name], tokens=tokens).save(
            job.folder / "predictions-test.npz"
        )
        cells = {"test_ppl": {"value": 3.0, "low": 2.0, "high": 4.0}, "seconds": {"value": 3.0}}
        (job.folder / SCORE).write_text(json.dumps({"cells": cells, "adapters": []}))
        jobs[name] = [job]
    (pair,) = compared(TABLES[2].pairs, jobs, TECHNIQUE_COLUMNS, 100)
    (difference,) = pair.differences
    ratio = np.exp((nll["prefix"].sum() - nll["lora"].sum()) / tokens.sum())
    assert difference.value == pytest.approx(ratio, rel=1e-5) and pair.title == "Prefix tuning / LoRA"
    assert 1.3 < difference.low < difference.value < difference.high < 1.4 and difference.p < 1e-6


@pytest.mark.parametrize(("row", "seed"), [("lora", 0), ("lora", 1), ("head_only", 1)])
def test_runs_of_other_notes_are_neither_averaged_nor_compared(finished, row, seed):
    jobs = {name: finished(name, ("mor",), (0, 1)) for name in ("lora", "head_only")}
    path = jobs[row][seed].folder / "predictions-test.npz"
    p = predicted(row, "mor", seed)
    dataclasses.replace(p, labels=1 - p.labels).save(path)
    with pytest.raises(UserError, match="were evaluated on other notes and cannot be compared; delete the one"):
        compared(TABLES[3].pairs, jobs, TASK_COLUMNS[1:2], 10)


@pytest.mark.parametrize("number", TABLES)
def test_pairs_are_of_rows_that_there_are(number):
    paper, names = TABLES[number], {line.name for line in TABLES[number].rows}
    assert all(
        pair.one in names and pair.other in names | (set(LINES) if number == 4 else set()) for pair in paper.pairs
    )
    assert len({(pair.one, pair.other) for pair in paper.pairs}) == len({(p.base, p.title) for p in paper.pairs}) > 0
    assert all(isinstance(pair, Pair) and not pair.differences and len(pair.title) <= 32 for pair in paper.pairs)
