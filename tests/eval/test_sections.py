"""What a report says of calibration, utility and subgroups, and its figures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from jaxlora.errors import UserError
from jaxlora.eval import calibration, sections, utility
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.runs import EvaluatedRun
from jaxlora.eval.scaling import platt, straightened

SIZES = {"female": 150, "male": 110, "": 40}


def predicted(kind, seed=0, notes=300):
    rng, noise = np.random.default_rng(9), np.random.default_rng(seed)
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
    logits = (logits + noise.normal(size=logits.shape) / 3).astype(np.float32)
    return Predictions(kind, tuple(map(str, range(count))), ids, ids, labels, logits, groups=groups)


def _scores(p):
    return p.logits[:, 1] - p.logits[:, 0]


def run(task, row, predictions, validation=None):
    return EvaluatedRun(task, (), row, predictions, [], validation=validation)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    lora = [run("a/mor", "LLaMA + LoRA", predicted("binary", seed), predicted("binary", seed + 3)) for seed in (0, 1)]
    worse = predicted("binary", 2)
    head = [run("a/mor", "LLaMA (head only)", dataclasses.replace(worse, logits=-worse.logits), predicted("binary", 5))]
    tasks = {
        "a/mor": {"LLaMA + LoRA": lora, "LLaMA (head only)": head},
        "a/los": {
            "a row of a rather long title + Downstream": [
                run("a/los", "a row of a rather long title + Downstream", predicted("multiclass"))
            ]
        },
        "a/diag": {"x": [run("a/diag", "x", predicted("multilabel"))]},
    }
    return {task: sections.write(folder, task, rows) for task, rows in tasks.items()}, lora


def test_every_task_has_its_figures(made):
    found, _ = made
    names = {task: [path.name for path in section.figures] for task, section in found.items()}
    assert names == {
        "a/mor": ["roc-a-mor.png", "reliability-a-mor.png", "decision-a-mor.png", "subgroups-a-mor.png"],
        "a/los": ["roc-a-los.png", "reliability-a-los.png", "subgroups-a-los.png"],
        "a/diag": ["roc-a-diag.png", "reliability-a-diag.png", "subgroups-a-diag.png"],
    }
    for path in [path for section in found.values() for path in section.figures]:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and 400 <= picture.width <= 1100
            assert len(picture.convert("RGB").getcolors(2**20)) > 50


def test_runs_of_a_row_are_averaged(made):
    found, runs = made
    each = [calibration.evaluate(of.predictions)["brier"] for of in runs]
    told = found["a/mor"]
    assert told.summary["calibration"]["LLaMA + LoRA"]["brier"] == pytest.approx(np.mean(each))
    assert f"| LLaMA + LoRA | {np.mean(each):.3f} |" in told.text
    assert "workload" not in found["a/los"].summary


def test_what_one_acts_on_is_scaled_where_there_are_validation_notes(made):
    found, runs = made
    scaled = [straightened(of.predictions, platt(of.validation)) for of in runs]
    works = [utility.workload(*calibration.pooled(p), 0.2).alerts for p in scaled]
    told = found["a/mor"].summary["workload"]["LLaMA + LoRA"]
    assert [work["threshold"] for work in told] == list(utility.TABLE)
    assert told[2]["alerts"] == pytest.approx(np.mean(works)) and 0 < told[2]["alerts"] < 100
    brier = np.mean([calibration.evaluate(p)["brier"] for p in scaled])
    assert f"| LLaMA + LoRA, Platt-scaled | {brier:.3f} |" in found["a/mor"].text
    assert "Platt-scaled on 300 validation notes" in found["a/mor"].text
    assert "Platt-scaled |" not in found["a/los"].text


def test_without_validation_notes_the_scores_are_said_to_be_as_given(tmp_path):
    section = sections.write(tmp_path, "mor", {"x": [run("mor", "x", predicted("binary"))]})
    assert "are missed (scores as given):" in section.text


def test_groups_are_of_the_best_row_and_have_intervals(made):
    found, runs = made
    p = runs[0].predictions
    areas = [roc_auc_score(of.predictions.labels[:150], _scores(of.predictions)[:150]) for of in runs]
    told = found["a/mor"].summary["subgroups"]
    assert told["row"] == "LLaMA + LoRA" and "Groups of patients, LLaMA + LoRA." in found["a/mor"].text
    sexes = [group for group in told["groups"] if group["attribute"] == "sex"]
    assert [(group["name"], group["patients"]) for group in sexes] == [
        ("female", 150),
        ("male", 110),
        ("not known", 40),
    ]
    expected = np.mean(areas)
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


def test_runs_of_a_row_are_of_the_same_notes(tmp_path):
    one, other = predicted("binary"), predicted("binary", notes=300)
    other = dataclasses.replace(other, labels=1 - other.labels)
    with pytest.raises(UserError, match="^mor, x: predictions: the two runs have other true labels; .*"):
        sections.write(tmp_path, "mor", {"x": [run("mor", "x", one), run("mor", "x", other)]})


@pytest.mark.parametrize("label", [0, 1])
def test_notes_of_one_class_have_a_section_too(tmp_path, label):
    p = predicted("binary")
    section = sections.write(
        tmp_path, "mor", {"x": [run("mor", "x", dataclasses.replace(p, labels=np.full(300, label)))]}
    )
    assert "subgroups" not in section.summary and "| x | " in section.text
    assert [path.name for path in section.figures] == ["roc-mor.png", "reliability-mor.png", "decision-mor.png"]


def test_without_groups_there_is_no_such_part(tmp_path):
    p = dataclasses.replace(predicted("binary"), groups={})
    section = sections.write(tmp_path, "mor", {"x": [run("mor", "x", p)]})
    assert "subgroups" not in section.summary and "Groups" not in section.text
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [
        "decision-mor.png",
        "reliability-mor.png",
        "roc-mor.png",
    ]
