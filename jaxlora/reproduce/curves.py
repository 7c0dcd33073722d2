"""What the figures of a reproduced table are drawn from: the saved predictions and logs of its runs, boiled down."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from jaxlora.data.examples import OUTCOMES
from jaxlora.eval import calibration, metrics, subgroups, uncertainty
from jaxlora.eval.predictions import Predictions, load
from jaxlora.reproduce.results import Cell, Table, TableRow

GRID = np.linspace(0, 1, 101)
_BIN = 20  # notes of a bin of a reliability curve, at the least


@dataclasses.dataclass(frozen=True)
class Curves:
    """How one row ranks the test notes of one task.

    Attributes:
      row, task: names of the table.
      kind: of the predictions.
      sensitivity: at each 1 − specificity of `GRID`; precision: at each sensitivity of it. Both are means over the
        labels with both classes.
      prevalence: mean share of positives of these labels.
      strata: `[strata, 3]` of many labels: by how many test notes have a label, their geometric mean, the mean AUROC of
        the stratum's labels, and how many these are.
      reliability: over all labels together. slope: of the calibration; NaN of many labels, where it is one a label.
    """

    row: str
    task: str
    kind: str
    sensitivity: np.ndarray
    precision: np.ndarray
    prevalence: float
    strata: np.ndarray
    reliability: calibration.Curve
    slope: float


@dataclasses.dataclass(frozen=True)
class Losses:
    """The log of one language-model run: perplexity of the training notes by update, smoothed."""

    row: str
    base: str
    steps: np.ndarray
    perplexity: np.ndarray


def curves(table: Table, folder: Path) -> list[Curves]:
    """Returns the curves of the first run of every cell that has one, of tasks of whole notes."""
    found = []
    for row, cell in _cells(table):
        predictions = load(folder / cell.folders[0] / "predictions-test.npz")
        if predictions.kind in OUTCOMES and len(metrics.scorable(metrics.one_vs_rest(predictions)[0])):
            found.append(_curves(row.name, cell.task, predictions))
    return found


def groups(table: Table, folder: Path) -> dict[str, tuple[str, list[subgroups.Group]]]:
    """Returns by task the row with the highest value of those whose predictions have groups, and, of its first run,
    how it goes for each group of patients."""
    found = {}
    for number, column in enumerate(table.columns):
        run = [row for row in table.rows if row.cells[number].folders and row.cells[number].value is not None]
        for row in sorted(run, key=lambda row: row.cells[number].value, reverse=True):
            predictions = load(folder / row.cells[number].folders[0] / "predictions-test.npz")
            if predictions.kind in OUTCOMES and predictions.groups:
                resamples = 200 if predictions.kind == "multilabel" else 2000
                found[column.name] = (row.name, subgroups.evaluate(predictions, intervals=_interval(resamples)))
                break
    return found


def _interval(resamples: int) -> subgroups.Intervals:
    return lambda predictions: uncertainty.intervals(predictions, ["auroc"], resamples)["auroc"]


def losses(table: Table, folder: Path) -> list[Losses]:
    """Returns the perplexity by update of the first run of every row of a table of language models."""
    found, done = [], set()
    for row, cell in _cells(table):
        run = folder / cell.folders[0]
        path = run / "log.jsonl"
        if table.number != 2 or run in done or not path.exists():
            continue
        done.add(run)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = np.array([(line["step"], line["loss"]) for line in lines if "loss" in line]).T
        if points.size:
            found.append(Losses(row.name, row.base, points[0], np.exp(_smooth(points[1]))))
    return found


def patients(table: Table, folder: Path) -> dict[str, int]:
    """Returns how many patients the test split of each dataset has, from the first of its runs."""
    found: dict[str, int] = {}
    for _, cell in _cells(table):
        run = folder / cell.folders[0]
        dataset = json.loads((run / "config.json").read_text(encoding="utf-8"))["data"]["name"]
        if dataset not in found:
            found[dataset] = len(np.unique(load(run / "predictions-test.npz").patients))
    return found


def _cells(table: Table) -> Iterator[tuple[TableRow, Cell]]:
    for row in table.rows:
        for cell in row.cells:
            if cell.folders:
                yield row, cell


def _curves(row: str, task: str, predictions: Predictions) -> Curves:
    truth, scores = metrics.one_vs_rest(predictions)
    scored = metrics.scorable(truth)
    sensitivity, precision, areas = [], [], []
    for column in scored:
        false, true, _ = roc_curve(truth[:, column], scores[:, column])
        precise, recall, _ = precision_recall_curve(truth[:, column], scores[:, column])
        sensitivity.append(np.interp(GRID, false, true))
        precision.append(np.interp(GRID, recall[::-1], precise[::-1]))
        areas.append(np.trapezoid(true, false))
    positives, several = truth[:, scored].sum(axis=0), predictions.kind == "multilabel"
    pooled = calibration.pooled(predictions)
    return Curves(
        row,
        task,
        predictions.kind,
        np.mean(sensitivity, axis=0),
        np.mean(precision, axis=0),
        prevalence=float(positives.mean() / len(truth)),
        strata=_strata(positives, np.array(areas)) if several else np.zeros((0, 3)),
        reliability=calibration.reliability(*pooled, bins=int(np.clip(len(pooled[0]) // _BIN, 2, 10)), by="mass"),
        slope=float("nan") if several else calibration.median_slope(predictions),
    )


def _strata(positives: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Returns (geometric mean of the positives, mean area, labels) of each half decade of positives that has labels."""
    of_label = np.floor(2 * np.log10(positives))
    rows = []
    for stratum in np.unique(of_label):
        here = of_label == stratum
        rows.append((np.exp(np.log(positives[here]).mean()), areas[here].mean(), here.sum()))
    return np.array(rows)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the running mean over the last twentieth of the curve up to each point."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)
