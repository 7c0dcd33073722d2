"""From the scores of finished runs to a table: means over seeds, intervals, verdicts."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlora.eval import uncertainty
from jaxlora.eval.uncertainty import Sampled
from jaxlora.reproduce import replicates
from jaxlora.reproduce.results import AVERAGE, DIFFERS, PASS, Adapter, Cell, Column, TableRow
from jaxlora.reproduce.runs import Job
from jaxlora.reproduce.tables import BASES, TASK_COLUMNS, TEST_NOTES, PaperRow
from jaxlora.reproduce.work import SCORE


def row_of(
    line: PaperRow,
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
      judged: whether its cells get a verdict. resamples: of the patients, for the intervals.
    """
    scores = [(job, _score(job)) for job in jobs]
    samples = samples_of(jobs, columns, resamples)
    paper = any(job.config.mode == "paper" for job in jobs)
    cells = []
    for column in columns:
        of_cell = [(job, score["cells"][column.name]) for job, score in scores if column.name in score["cells"]]
        same = paper or column.name not in ("diag", "proc")  # the printed ones are ranked by a softmax
        cell = Cell(
            column.name,
            printed=line.printed.get(column.name),
            folders=tuple(str(job.folder.relative_to(workdir)) for job, _ in of_cell),
        )
        values = [score["value"] for _, score in of_cell if score["value"] is not None]
        cells.append(_filled(cell, column, values, samples.get(column.name), cell.printed, judged and same))
    average = None
    if columns == TASK_COLUMNS:
        wrong = line.average is not None and abs(line.average - line.true_average) > 0.0051
        average = Cell(AVERAGE.name, printed=line.average, corrected=line.true_average if wrong else None)
        of_seeds = samples.get(AVERAGE.name, [])
        values = [100 * of.value for of in of_seeds]
        average = _filled(average, AVERAGE, values, of_seeds, line.true_average, judged and paper)
    return TableRow(
        name=line.name,
        title=line.title,
        base=BASES[line.base].title,
        cells=tuple(cells),
        average=average,
        as_published=line.as_published,
        not_run=why,
        adapters=tuple(Adapter(**found) for _, score in scores for found in score["adapters"]),
    )


def samples_of(jobs: Sequence[Job], columns: Sequence[Column], resamples: int) -> dict[str, list[Sampled]]:
    """Returns the replicates of a row by column, one of each seed, of the columns whose scores have an interval.

    Where these are all tasks there is their average too, of each seed: over the tasks, in the same draw of the union of
    their patients.

    Raises:
      UserError: two seeds of a column were evaluated on other notes.
    """
    found, scores = {}, [(job, _score(job)["cells"]) for job in jobs]
    for column in columns:
        of_column = [job for job, cells in scores if cells.get(column.name, {}).get("low") is not None]
        if of_column:
            folders, mode = [job.folder for job in of_column], of_column[0].config.mode
            found[column.name] = [of.sampled for of in replicates.of_same_notes(folders, mode, resamples)]
    if tuple(columns) == TASK_COLUMNS and len(found) == len(columns):
        found[AVERAGE.name] = [uncertainty.average(of_seed) for of_seed in zip(*found.values(), strict=True)]
    return found


def _score(job: Job) -> dict:
    return json.loads((job.folder / SCORE).read_text(encoding="utf-8"))


def _filled(
    cell: Cell,
    column: Column,
    values: Sequence[float],
    samples: Sequence[Sampled] | None,
    theirs: float | None,
    judged: bool,
) -> Cell:
    """Returns a cell with its value, spread, interval and verdict.

    Args:
      values: of the seeds, in the unit that the paper prints. samples: their replicates, where the figure has some.
      theirs: what the verdict is about.
    """
    if not values:
        return cell
    value, low, high = float(np.mean(values)), None, None
    if samples:
        unit = 100 if column.unit == "percent" else 1
        low, high = (unit * end for end in uncertainty.interval(uncertainty.average(samples)))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 and column.unit != "count" else None
    verdict = verdict_of(column, value, low, high, theirs) if judged else ""
    return dataclasses.replace(cell, value=value, low=low, high=high, runs=len(values), sd=sd, verdict=verdict)


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
