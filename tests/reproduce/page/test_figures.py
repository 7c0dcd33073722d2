"""What the figures of a page are of: all seeds, the training notes where they are known, validation notes."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

from jaxlora.eval import subgroups
from jaxlora.eval.predictions import load
from jaxlora.reproduce.page import curves
from jaxlora.reproduce.page.figures import perplexities, series_of
from jaxlora.reproduce.page.groups import subgroups as of_groups
from jaxlora.reproduce.page.rankings import rankings
from jaxlora.reproduce.page.risks import risks
from jaxlora.reproduce.results import Cell, TableRow


def with_seeds(outcomes, names=("lora", "tfidf")):
    """A table whose first cells are of two seeds: the runs of two rows."""
    table, folder = outcomes
    cells = [
        dataclasses.replace(cell, folders=tuple(f"{cell.task}/{n}" for n in names)) for cell in table.rows[0].cells
    ]
    row = dataclasses.replace(table.rows[0], cells=tuple(cells))
    return dataclasses.replace(table, rows=(row,), seeds=(0, 1)), folder


def test_curves_and_groups_are_of_all_seeds(outcomes):
    table, folder = with_seeds(outcomes)
    found = curves.curves(table, folder)["mor"][table.rows[0].name]
    alone = [curves.curves(with_seeds(outcomes, (n,))[0], folder)["mor"][table.rows[0].name] for n in ("lora", "tfidf")]
    assert found.ranked.sensitivity == pytest.approx(np.mean([of.ranked.sensitivity for of in alone], axis=0))
    assert found.scaled and found.fitted_on == 120
    runs = [load(folder / "mor" / name / "predictions-test.npz") for name in ("lora", "tfidf")]
    assert curves.groups(table, folder, 20)["mor"][1] == subgroups.evaluate(runs, resamples=20)
    figures = {figure.name: figure.caption for figure in rankings(table, curves.curves(table, folder), {})}
    assert all("means over the 2 seeds" in caption for caption in figures.values())
    assert "means over the 2 seeds" in of_groups(table, curves.groups(table, folder, 20)).caption


def test_the_best_rows_have_a_colour_each_and_the_others_are_grey(outcomes):
    table, _ = outcomes
    rows = []
    for number in range(10):
        cells = tuple(Cell(column.name, 50.0 + number % 7) for column in table.columns)
        rows.append(TableRow(f"row {number}", f"Row {number}", "LLaMA", cells))
    names = [row.name for row in rows]
    series = series_of(dataclasses.replace(table, rows=tuple(rows)), names)
    grey = {name for name, kind in series.kinds.items() if kind == "faint"}
    assert grey == {"row 0", "row 7"} and len(set(series.kinds.values())) == 9
    assert [kind for kind, _ in series.legend] == [f"s{number}" for number in range(8)]
    assert set(list(series.ordered(dict.fromkeys(names)))[:2]) == grey and "8 rows" in series.greys
    assert series_of(dataclasses.replace(table, rows=tuple(rows[:8])), names[:8]).greys == ""


def test_a_run_without_validation_notes_leaves_all_of_its_task_as_given(outcomes):
    table, folder = outcomes
    found = curves.curves(table, folder)
    figures = {figure.name: figure for figure in risks(table, found)}
    assert len(figures["scaled"].panels) == 3 and len(figures["decision"].panels) == 1
    assert ">MOR, Platt-scaled on 120 validation notes<" in figures["decision"].panels[0]
    found["mor"]["lora"] = dataclasses.replace(found["mor"]["lora"], scaled=None)
    figures = {figure.name: figure for figure in risks(table, found)}
    assert len(figures["scaled"].panels) == 2 and ">MOR, scores as given<" in figures["decision"].panels[0]


def test_labels_are_told_apart_by_their_training_notes(outcomes, tmp_path):
    table, folder = outcomes
    assert curves.frequencies(table, folder) == {}
    shutil.copytree(folder, tmp_path / "runs")
    counts = 24 - 2 * np.arange(12)
    for path in (tmp_path / "runs" / "diag").glob("*/predictions-test.npz"):
        dataclasses.replace(load(path), train_positives=counts).save(path)
    found = curves.frequencies(table, tmp_path / "runs")
    assert {task: of.tolist() for task, of in found.items()} == {"diag": counts.tolist()}
    ranked = curves.curves(table, folder)
    for counts, split in ((found, "training"), ({}, "test")):
        figure = next(figure for figure in rankings(table, ranked, counts) if figure.name == "frequency")
        assert f">{split} notes that have the label<" in figure.panels[0]


def test_perplexity_of_validation_notes_is_apart_from_that_of_training_notes(techniques):
    table, folder = techniques
    found = curves.losses(table, folder)
    assert found[0].validated.tolist() == [20, 40, 59] and found[0].validation[0] == 6
    assert found[0].training[30] == pytest.approx(np.exp(np.mean([1 + 3 / step for step in (30, 31)])))
    panel = perplexities(table, found).panels[0]
    assert len(re.findall('class="line s0"', panel)) == len(re.findall('class="line s0 dashed"', panel)) == 1
    assert "LoRA, validation notes" in panel and "LoRA, training notes" in panel
    plain = [dataclasses.replace(of, validated=np.zeros(0), validation=np.zeros(0)) for of in found]
    assert "dashed" not in perplexities(table, plain).panels[0]
