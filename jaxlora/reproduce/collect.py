"""From the scores of finished runs to a table: means over seeds, intervals, verdicts."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlora.eval import uncertainty
from jaxlora.eval.predictions import Predictions, load
from jaxlora.reproduce.results import DIFFERS, PASS, Adapter, Cell, Column, TableRow
from jaxlora.reproduce.runs import Job
from jaxlora.reproduce.tables import BASES, TASK_COLUMNS, TEST_NOTES, Line
from jaxlora.reproduce.work import SCORE, metric_of


def row_of(
    line: Line,
    columns: tuple[Column, ...],
    jobs: Sequence[Job],
    workdir: Path,
    why: str,
    judged: bool,
    resamples: int,
) -> TableRow:
    """Returns one row of a table.

    Args:
      columns: of the table, not of all tasks where some were asked for; then there are no averages.
      jobs: its runs, all finished. why: there are none; "" where there are.
      judged: whether its cells get a verdict. resamples: of the patients, for the interval of several seeds.
    """
    scores = [(job, json.loads((job.folder / SCORE).read_text(encoding="utf-8"))) for job in jobs]
    cells = []
    for column in columns:
        of_cell = [(job, score["cells"][column.name]) for job, score in scores if column.name in score["cells"]]
        cells.append(_cell(line, column, of_cell, workdir, judged, resamples))
    values = [cell.value for cell in cells]
    whole = columns == TASK_COLUMNS
    return TableRow(
        name=line.name,
        title=line.title,
        base=BASES[line.base].title,
        cells=tuple(cells),
        average=float(np.mean(values)) if whole and None not in values else None,
        printed_average=line.average if whole else None,
        true_average=line.true_average if whole else None,
        as_published=line.as_published,
        not_run=why,
        adapters=tuple(Adapter(**found) for _, score in scores for found in score["adapters"]),
    )


def _cell(
    line: Line, column: Column, found: list[tuple[Job, dict]], workdir: Path, judged: bool, resamples: int
) -> Cell:
    printed = line.printed.get(column.name)
    scores = [score for _, score in found if score["value"] is not None]
    folders = tuple(str(job.folder.relative_to(workdir)) for job, _ in found)
    if not scores:
        return Cell(column.name, printed=printed, folders=folders)
    values = [score["value"] for score in scores]
    value = float(np.mean(values))
    bounds, sd = [scores[0].get("low"), scores[0].get("high")], None
    if len(values) > 1:
        sd = float(np.std(values, ddof=1))
        if bounds[0] is not None:
            seeds = [load(job.folder / "predictions-test.npz") for job, _ in found]
            bounds = _interval(seeds, found[0][0].config.mode, resamples)
    same = column.name not in ("diag", "proc") or found[0][0].config.mode == "paper"  # the printed are by a softmax
    verdict = verdict_of(column, value, *bounds, printed) if judged and same else ""
    return Cell(column.name, value, *bounds, len(values), sd, printed, verdict, folders)


def _interval(seeds: list[Predictions], mode: str, resamples: int) -> list[float]:
    """Returns the interval of the mean over seeds, over patients, in the unit that the paper prints."""
    metric, unit = ("perplexity", 1) if seeds[0].kind == "lm" else (metric_of(seeds[0].kind, mode), 100)
    of_mean = uncertainty.over_seeds(seeds, metric, resamples)
    return [unit * of_mean.low, unit * of_mean.high]


def verdict_of(column: Column, value: float, low: float | None, high: float | None, printed: float | None) -> str:
    """Returns PASS or DIFFERS, or "" where there is nothing to compare.

    A printed figure passes where it lies in our interval, and ours where it lies in an interval around the printed one,
    which a binary AUROC has from its size alone. A count passes where it is the same to the unit. A figure without an
    interval, and a time, which is of a machine, has no verdict.
    """
    if printed is None:
        return ""
    if column.unit == "count":
        return PASS if value == printed else DIFFERS
    if low is None or high is None:
        return ""
    theirs = printed_interval(column.name, printed)
    inside = low <= printed <= high or (theirs is not None and theirs[0] <= value <= theirs[1])
    return PASS if inside else DIFFERS


def printed_interval(task: str, printed: float) -> tuple[float, float] | None:
    """Returns the 95 % interval around a printed AUROC of a binary task, in %; None of the others.

    From the notes and positives of the paper's test split, by Hanley and McNeil (1982): with Q1 = A / (2 - A) and
    Q2 = 2 A^2 / (1 + A), the variance is (A (1 - A) + (P - 1)(Q1 - A^2) + (N - 1)(Q2 - A^2)) / (P N).
    """
    if task not in TEST_NOTES:
        return None
    notes, positives = TEST_NOTES[task]
    negatives, area = notes - positives, printed / 100
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (one - area**2) + (negatives - 1) * (two - area**2)
    half = 196 * math.sqrt(variance / (positives * negatives))
    return printed - half, printed + half
