"""What a report says of calibration, utility and subgroups, and its figures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from jaxlora.eval import calibration, sections, utility
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.runs import Run

SIZES = {"female": 150, "male": 110, "": 40}


def predicted(kind, seed=0, notes=300):
    rng = np.random.default_rng(seed)
    count = {"binary": 2, "multiclass": 4, "multilabel": 3}[kind]
    logits = rng.normal(size=(notes, count))
    if kind == "multilabel":
        labels = (rng.random((notes, count)) < expit(logits)).astype(np.uint8)
    else:
        labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((notes, 1))).sum(axis=1)
    ids = np.array([f"{i:016x}" for i in range(notes)])
    codes = np.repeat([0, 1, -1], list(SIZES.values())).astype(np.int16)
    age = np.where(np.arange(notes) < 9, 0, 1).astype(np.int16)
    groups = {"age": (("0-44", "45-64"), age), "sex": (("female", "male"), codes)}
    logits = logits.astype(np.float32)
    return Predictions(kind, tuple(map(str, range(count))), ids, ids, labels, logits, groups=groups)


def run(task, row, predictions):
    return Run(task, (), row, predictions, [])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    runs = [run("a/mor", "LLaMA + LoRA", predicted("binary", seed)) for seed in (0, 1)]
    worse = predicted("binary", 2)
    runs += [run("a/mor", "LLaMA (head only)", dataclasses.replace(worse, logits=-worse.logits))]
    runs += [run("a/los", "a row of a rather long title + Downstream", predicted("multiclass"))]
    runs += [run("a/diag", "x", predicted("multilabel"))]
    return sections.write(folder, runs), runs


def test_every_task_has_its_figures(made):
    found, _ = made
    names = {task: [path.name for path in section.figures] for task, section in found.items()}
    assert names == {
        "a/mor": ["reliability-a-mor.png", "decision-a-mor.png", "subgroups-a-mor.png"],
        "a/los": ["reliability-a-los.png", "subgroups-a-los.png"],
        "a/diag": ["reliability-a-diag.png", "subgroups-a-diag.png"],
    }
    for path in [path for section in found.values() for path in section.figures]:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and 400 <= picture.width <= 1100
            assert len(picture.convert("RGB").getcolors(2**20)) > 50


def test_runs_of_a_row_are_averaged(made):
    found, runs = made
    each = [calibration.evaluate(of.predictions)["brier"] for of in runs[:2]]
    assert found["a/mor"].summary["calibration"]["LLaMA + LoRA"]["brier"] == pytest.approx(np.mean(each))
    works = [utility.workload(*calibration.pooled(of.predictions), 0.2).alerts for of in runs[:2]]
    told = found["a/mor"].summary["workload"]["LLaMA + LoRA"]
    assert [work["threshold"] for work in told] == list(utility.TABLE)
    assert told[2]["alerts"] == pytest.approx(np.mean(works)) and 0 < told[2]["alerts"] < 100
    assert f"| LLaMA + LoRA | {np.mean(each):.3f} |" in found["a/mor"].text
    assert "workload" not in found["a/los"].summary


def test_groups_are_of_the_best_row_and_have_intervals(made):
    found, runs = made
    p = runs[0].predictions
    told = found["a/mor"].summary["subgroups"]
    assert told["row"] == "LLaMA + LoRA" and "Groups of patients, LLaMA + LoRA." in found["a/mor"].text
    sexes = [group for group in told["groups"] if group["attribute"] == "sex"]
    assert [(group["name"], group["patients"]) for group in sexes] == [
        ("female", 150),
        ("male", 110),
        ("not known", 40),
    ]
    expected = roc_auc_score(p.labels[:150], (p.logits[:, 1] - p.logits[:, 0])[:150])
    assert sexes[0]["auroc"] == pytest.approx(expected) and sexes[0]["low"] < expected < sexes[0]["high"]
    assert f"| sex: female | 150 | {p.labels[:150].sum()} | {expected:.3f} (" in found["a/mor"].text
    assert set(told["worst_gap"]) == {"sex"}


def test_a_small_group_is_nowhere(made):
    """Nine patients under 45: neither they nor the other band, which with the total would tell them."""
    found, _ = made
    for section in found.values():
        assert "| age: 0-44 | – | – | – | – |" in section.text and "| age: 45-64 | – | – | – | – |" in section.text
        ages = [group for group in section.summary["subgroups"]["groups"] if group["attribute"] == "age"]
        assert all(group["patients"] is None and group["auroc"] is None for group in ages)
        assert "| 291 |" not in section.text and ": 291," not in json.dumps(section.summary)


def test_without_groups_there_is_no_such_part(tmp_path):
    p = dataclasses.replace(predicted("binary"), groups={})
    section = sections.write(tmp_path, [run("mor", "x", p)])["mor"]
    assert "subgroups" not in section.summary and "Groups" not in section.text
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["decision-mor.png", "reliability-mor.png"]
