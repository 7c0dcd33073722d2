"""What the figures of a reproduced table are drawn from: the saved predictions and logs of its runs."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxlora.data.examples import OUTCOMES
from jaxlora.eval import subgroups
from jaxlora.eval.curves import Curves, of_row, smoothed, traced
from jaxlora.eval.predictions import Predictions, load
from jaxlora.reproduce.results import Cell, Table, TableRow

ByRow = dict[str, Curves]  # by the row's name


@dataclasses.dataclass(frozen=True)
class Losses:
    """The log of the language-model runs of one row: perplexity by update, the mean over its runs.

    Attributes:
      steps, training: of the training notes, smoothed. validated, validation: of the validation notes; empty where the
        log has none.
    """

    row: str
    base: str
    steps: np.ndarray
    training: np.ndarray
    validated: np.ndarray
    validation: np.ndarray


def curves(table: Table, folder: Path) -> dict[str, ByRow]:
    """Returns by task the curves of every row whose runs can be ranked, each of all its runs."""
    found: dict[str, ByRow] = {}
    for row, cell in _cells(table):
        if load(folder / cell.folders[0] / "predictions-test.npz").kind in OUTCOMES:
            made = of_row(_runs(cell, folder), _runs(cell, folder, "validation"))
            if made.ranked:
                found.setdefault(cell.task, {})[row.name] = made
    return found


def frequencies(table: Table, folder: Path) -> dict[str, np.ndarray]:
    """Returns by task of many labels how many training notes have each, where the predictions know it."""
    found: dict[str, np.ndarray] = {}
    for _, cell in _cells(table):
        if cell.task not in found:
            predictions = load(folder / cell.folders[0] / "predictions-test.npz")
            if len(predictions.train_positives):
                found[cell.task] = predictions.train_positives
    return found


def groups(table: Table, folder: Path, resamples: int = 2000) -> dict[str, tuple[str, list[subgroups.Group]]]:
    """Returns by task the row with the highest value of those whose predictions have groups, and how it goes for each
    group of patients."""
    found = {}
    for number, column in enumerate(table.columns):
        run = [row for row in table.rows if row.cells[number].folders and row.cells[number].value is not None]
        for row in sorted(run, key=lambda row: row.cells[number].value, reverse=True):
            runs = _runs(row.cells[number], folder)
            if runs[0].kind in OUTCOMES and runs[0].groups:
                found[column.name] = (row.name, subgroups.evaluate(runs, resamples=resamples))
                break
    return found


def losses(table: Table, folder: Path) -> list[Losses]:
    """Returns the perplexity by update of every row of a table of language models."""
    found, done = [], set()
    for row, cell in _cells(table):
        if table.number != 2 or row.name in done:
            continue
        done.add(row.name)
        logs = [_log(folder / run) for run in cell.folders]
        steps, values = traced(logs, "loss")
        if len(steps):
            validation = traced(logs, "validation/perplexity")
            found.append(Losses(row.name, row.base, steps, np.exp(smoothed(values)), *validation))
    return found


def patients(table: Table, folder: Path) -> dict[str, int]:
    """Returns how many patients the test split of each dataset has, from the first of its runs."""
    found: dict[str, int] = {}
    for _, cell in _cells(table):
        run = folder / cell.folders[0]
        dataset = _config(run)["data"]["name"]
        if dataset not in found:
            found[dataset] = len(np.unique(load(run / "predictions-test.npz").patients))
    return found


def _cells(table: Table) -> Iterator[tuple[TableRow, Cell]]:
    for row in table.rows:
        for cell in row.cells:
            if cell.folders:
                yield row, cell


def _runs(cell: Cell, folder: Path, split: str = "test") -> list[Predictions]:
    """Returns the predictions of each run of a cell, or none where a run has none for that split."""
    paths = [folder / run / f"predictions-{split}.npz" for run in cell.folders]
    return [load(path) for path in paths] if split == "test" or all(path.exists() for path in paths) else []


def _config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


def _log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
