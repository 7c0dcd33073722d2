"""The part of a report on one task: how its rows rank, how calibrated they are, what acting on them brings, and how
groups of patients fare."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlora.errors import UserError
from jaxlora.eval import calibration, curves, figures, figures_calibration, scaling, subgroups, uncertainty, utility
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.runs import EvaluatedRun
from jaxlora.eval.subgroups import Group

_COLUMNS = {
    "brier": "Brier",
    "brier_scaled": "scaled Brier",
    "log_loss": "log loss",
    "calibration_intercept": "intercept",
    "calibration_slope": "slope",
    "ece": "ECE",
}
_NO_PROBABILITIES = (
    "What a run says is no probability where its loss weighed the classes (`class_weights`, the default) or several "
    "labels were scored by a softmax over them; then only what is Platt-scaled on validation notes may be read as "
    "risks (`jaxlora evaluate --split=validation` makes them). A slope below 1 is overconfident."
)


@dataclasses.dataclass(frozen=True)
class Section:
    """What a report has of one task: for `report.json`, in Markdown, and the figures."""

    summary: dict[str, Any]
    text: str
    figures: list[Path]


def write(folder: Path, task: str, rows: Mapping[str, Sequence[EvaluatedRun]]) -> Section:
    """Draws the figures of a task of whole notes into `folder` and returns its section.

    Figures and values of several runs of a row are of all of them. Groups are those of the row with the highest AUROC.

    Raises:
      UserError: the runs of a row are not of the same notes.
    """
    for row, runs in rows.items():
        _check(task, row, runs)
    name = task.replace("/", "-")
    tests = {row: [run.predictions for run in runs] for row, runs in rows.items()}
    held_out = {row: _validation(runs) for row, runs in rows.items()}
    drawn = {row: curves.of_row(of, held_out[row]) for row, of in tests.items()}
    scaled = {row: scaling.platt_scaled(of, held_out[row]) for row, of in tests.items() if held_out[row]}
    found = {row: mean([calibration.evaluate(p) for p in of]) for row, of in tests.items()}
    found_scaled = {row: mean([calibration.evaluate(p) for p in of]) for row, of in scaled.items()}
    summary: dict[str, Any] = {"calibration": found} | ({"calibration_scaled": found_scaled} if scaled else {})
    pictures = [figures.roc(folder / f"roc-{name}.png", task, drawn)]
    pictures.append(figures_calibration.reliability(folder / f"reliability-{name}.png", task, drawn))
    parts = [_calibration(found, found_scaled)]
    if next(iter(drawn.values())).kind == "binary":
        pictures.append(figures_calibration.decision(folder / f"decision-{name}.png", task, drawn))
        chosen = scaled if len(scaled) == len(tests) else tests
        summary["workload"] = {row: _workload(of) for row, of in chosen.items()}
        parts.append(_workloads(summary["workload"], curves.probabilities(drawn)[1]))
    areas = {row: float(of.ranked.areas.mean()) for row, of in drawn.items() if of.ranked}
    best = max(areas, key=areas.get, default=None)
    groups = subgroups.evaluate(tests[best]) if best else []
    if groups:
        gaps = subgroups.gaps(groups, areas[best])
        summary["subgroups"] = {"row": best, "groups": [dataclasses.asdict(of) for of in groups], "worst_gap": gaps}
        parts.append(_subgroups(best, groups, gaps))
        pictures.append(figures_calibration.forest(folder / f"subgroups-{name}.png", task, groups, areas[best]))
    return Section(summary, "\n".join(parts), pictures)


def _check(task: str, row: str, runs: Sequence[EvaluatedRun]) -> None:
    try:
        for run in runs[1:]:
            uncertainty.check_same(runs[0].predictions, run.predictions)
    except UserError as error:
        raise UserError(f"{task}, {row}: {error}") from None


def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each figure over several runs."""
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]}


def _validation(runs: Sequence[EvaluatedRun]) -> list[Predictions]:
    """Returns the runs' predictions for their validation notes, or none where a run has none."""
    found = [run.validation for run in runs if run.validation]
    return found if len(found) == len(runs) else []


def _workload(runs: Sequence[Predictions]) -> list[dict[str, float]]:
    return [
        mean([dataclasses.asdict(utility.workload(*calibration.pooled(p), threshold)) for p in runs])
        for threshold in utility.TABLE
    ]


def _calibration(found: Mapping[str, Mapping[str, float]], scaled: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"Calibration. {_NO_PROBABILITIES}", "", f"| row | {' | '.join(_COLUMNS.values())} |"]
    lines.append("|---|" + "---:|" * len(_COLUMNS))
    for row, of in found.items():
        lines.append(f"| {row} | {' | '.join(_told(of[name]) for name in _COLUMNS)} |")
        if row in scaled:
            lines.append(f"| {row}, Platt-scaled | {' | '.join(_told(scaled[row][name]) for name in _COLUMNS)} |")
    return "\n".join([*lines, ""])


def _workloads(found: Mapping[str, list[dict[str, float]]], how: str) -> str:
    lines = [
        f"Of 100 notes, how many one acts on at a threshold, how many of them rightly, how many are missed ({how}):",
        "",
    ]
    lines.append(f"| row | {' | '.join(f'{threshold:.0%}' for threshold in utility.TABLE)} |")
    lines.append("|---|" + "---:|" * len(utility.TABLE))
    for row, of in found.items():
        cells = [f"{each['alerts']:.0f}, {each['right']:.0f}, {each['missed']:.0f}" for each in of]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _subgroups(row: str, groups: Sequence[Group], gaps: Mapping[str, float]) -> str:
    lines = [
        f"Groups of patients, {row}. Groups of fewer than {subgroups.LEAST} patients, or of one outcome alone, are not "
        "shown, nor others that would give them away:",
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
