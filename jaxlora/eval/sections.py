"""The parts of a report on how calibrated the rows of a task are, what acting on them brings, and how groups fare."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlora.data.examples import OUTCOMES
from jaxlora.eval import calibration, figures_calibration, metrics, subgroups, uncertainty, utility
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.runs import Run
from jaxlora.eval.subgroups import Group

_COLUMNS = {
    "brier": "Brier",
    "brier_scaled": "scaled",
    "log_loss": "log loss",
    "calibration_intercept": "intercept",
    "calibration_slope": "slope",
    "ece": "ECE",
}
_NO_PROBABILITIES = (
    "What a run says is no probability where its loss weighed the classes (`class_weights`, the default) or several "
    "labels were scored by a softmax over them; then only the figures after scaling on validation notes, in "
    "`metrics-test.json`, may be read as risks. A slope below 1 is overconfident."
)
_RESAMPLES = {"multilabel": 200}  # of the patients of each group, for the interval of its AUROC; else 2,000


@dataclasses.dataclass(frozen=True)
class Section:
    """What a report has of one task: for `report.json`, in Markdown, and the figures."""

    summary: dict[str, Any]
    text: str
    figures: list[Path]


def write(folder: Path, outcomes: Sequence[Run]) -> dict[str, Section]:
    """Draws the figures of every task of whole notes into `folder` and returns its section by task.

    Figures of several runs of a row are averaged. Groups are those of one run: the first of the row with the highest
    AUROC.
    """
    runs: dict[str, dict[str, list[Predictions]]] = {}
    for run in outcomes:
        if run.predictions.kind in OUTCOMES:
            runs.setdefault(run.dataset, {}).setdefault(run.row, []).append(run.predictions)
    return {task: _section(folder, task, rows) for task, rows in runs.items()}


def _section(folder: Path, task: str, rows: Mapping[str, list[Predictions]]) -> Section:
    name = task.replace("/", "-")
    found = {row: _mean([calibration.evaluate(p) for p in of]) for row, of in rows.items()}
    summary: dict[str, Any] = {"calibration": found}
    figures = [figures_calibration.reliability(folder / f"reliability-{name}.png", task, rows)]
    parts = [_calibration(found)]
    if next(iter(rows.values()))[0].kind == "binary":
        figures.append(figures_calibration.decision(folder / f"decision-{name}.png", task, rows))
        summary["workload"] = {row: _workload(of) for row, of in rows.items()}
        parts.append(_workloads(summary["workload"]))
    best = max(rows, key=lambda row: np.nan_to_num(np.mean([_auroc(p) for p in rows[row]])))
    chosen = rows[best][0]
    groups = subgroups.evaluate(chosen, intervals=_interval)
    if groups:
        gaps = subgroups.gaps(chosen, groups)
        summary["subgroups"] = {"row": best, "groups": [dataclasses.asdict(of) for of in groups], "worst_gap": gaps}
        parts.append(_subgroups(best, groups, gaps))
        figures.append(figures_calibration.forest(folder / f"subgroups-{name}.png", task, groups, _auroc(chosen)))
    return Section(summary, "\n".join(parts), figures)


def _interval(predictions: Predictions) -> uncertainty.Interval:
    resamples = _RESAMPLES.get(predictions.kind, 2000)
    return uncertainty.intervals(predictions, ["auroc"], resamples)["auroc"]


def _auroc(predictions: Predictions) -> float:
    return metrics.auroc(*metrics.one_vs_rest(predictions))


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]}


def _workload(runs: Sequence[Predictions]) -> list[dict[str, float]]:
    return [
        _mean([dataclasses.asdict(utility.workload(*calibration.pooled(p), threshold)) for p in runs])
        for threshold in utility.TABLE
    ]


def _calibration(found: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"Calibration. {_NO_PROBABILITIES}", "", f"| row | {' | '.join(_COLUMNS.values())} |"]
    lines.append("|---|" + "---:|" * len(_COLUMNS))
    lines += [f"| {row} | {' | '.join(_told(of[name]) for name in _COLUMNS)} |" for row, of in found.items()]
    return "\n".join([*lines, ""])


def _workloads(found: Mapping[str, list[dict[str, float]]]) -> str:
    lines = ["Of 100 notes, how many one acts on at a threshold, how many of them rightly, how many are missed:", ""]
    lines.append(f"| row | {' | '.join(f'{threshold:.0%}' for threshold in utility.TABLE)} |")
    lines.append("|---|" + "---:|" * len(utility.TABLE))
    for row, of in found.items():
        cells = [f"{each['alerts']:.0f}, {each['right']:.0f}, {each['missed']:.0f}" for each in of]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _subgroups(row: str, groups: Sequence[Group], gaps: Mapping[str, float]) -> str:
    lines = [
        f"Groups of patients, {row}. Groups of fewer than {subgroups.LEAST} patients are not shown, nor others that "
        "would give them away:",
        "",
        "| group | patients | with the outcome | AUROC | slope |",
        "|---|---:|---:|---:|---:|",
    ]
    for group in groups:
        name = f"{group.attribute.replace('_', ' ')}: {group.name}"
        if group.shown:
            area = f"{_told(group.auroc)} ({_told(group.low)} to {_told(group.high)})"
            count = "–" if group.positives is None else f"{group.positives:,}"
            lines.append(f"| {name} | {group.patients:,} | {count} | {area} | {_told(group.slope)} |")
        else:
            lines.append(f"| {name} | – | – | – | – |")
    if gaps:
        told = ", ".join(f"{attribute.replace('_', ' ')} {_told(gap)}" for attribute, gap in gaps.items())
        lines += ["", f"By how much the AUROC of the worst group is below that of all notes: {told}."]
    return "\n".join([*lines, ""])


def _told(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"
