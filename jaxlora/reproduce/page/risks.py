"""The figures of a reproduced table on what its scores are worth as probabilities: calibration and decision curves."""

from collections.abc import Mapping

import numpy as np

from jaxlora.eval.calibration import ece
from jaxlora.eval.curves import GIVEN, Risks, probabilities
from jaxlora.reproduce.page.curves import ByRow
from jaxlora.reproduce.page.figures import Figure, Series, over_seeds, series_of
from jaxlora.reproduce.page.svg import Panel, ticks
from jaxlora.reproduce.results import Table

_WEIGHTED = "Weighted classes, the default, make a score too high for the rare one."
_RELIABILITY = (
    "Bins of as many notes each; on the dashed line a probability is what it says. All labels together; of one of "
    "several classes whether the most probable one is right."
)
_SCALED = (
    "The same after Platt scaling: an offset and a slope for the log-odds of each class or label, fitted to each run's "
    "own validation notes. Where these are few, or a label is rare among them, it can make things worse."
)
_DECISION = (
    "Net benefit of acting on the notes whose probability is at or above a threshold: true positives less false ones "
    "at the rate that the threshold means, per note (Vickers and Elkin 2006). Dashed: acting on all notes. Zero: "
    "acting on none. Scores of weighted classes are no probabilities as given; the title says whether they are scaled."
)


def risks(table: Table, found: Mapping[str, ByRow]) -> list[Figure]:
    """Returns the figures of the tasks that have them: calibration, and of binary tasks decision curves.

    Args:
      found: by task.
    """
    if not found:
        return []
    series = series_of(table, {row for rows in found.values() for row in rows})
    given, scaled, decision = [], [], []
    for column in (column for column in table.columns if column.name in found):
        here = series.ordered(found[column.name])
        given.append(_reliability(series, column.title, {row: of.given for row, of in here.items()}))
        best, how = probabilities(here)
        told = f"{column.title.partition(' (')[0]}, {how}"
        if how != GIVEN:
            scaled.append(_reliability(series, told, best))
        if next(iter(best.values())).decision:
            decision.append(_decision(series, told, best))
    together = f" The notes of the {len(table.seeds)} seeds are taken together." if len(table.seeds) > 1 else ""
    told = (
        ("calibration", "Calibration of the scores as given", f"{_RELIABILITY} {_WEIGHTED}{together}", given),
        ("scaled", "Calibration after scaling", f"{_SCALED}{together}", scaled),
        ("decision", "Decision curves", f"{_DECISION}{over_seeds(table)}", decision),
    )
    return [
        Figure(name, title, caption + series.greys, tuple(panels), series.legend)
        for name, title, caption, panels in told
        if panels
    ]


def _reliability(series: Series, title: str, rows: Mapping[str, Risks]) -> str:
    curves = {row: of.reliability for row, of in rows.items()}
    top = min(1.0, 1.05 * max(float(ends.max()) for of in curves.values() for ends in (of.predicted, of.observed)))
    panel = Panel(title, (0, top), (0, top), left=52)
    panel.x_axis(ticks(0, top), "probability given")
    panel.y_axis(ticks(0, top), "share that has it")
    panel.line((0, top), (0, top), "chance", "perfect")
    for row, of in curves.items():
        kind = series.kinds[row]
        panel.line(of.predicted, of.observed, kind, f"{series.names[row]}: ECE {ece(of):.3f}")
        for x, y in zip(of.predicted, of.observed, strict=True):
            panel.point(x, y, kind)
    errors = "; ".join(f"{series.names[row]} {ece(of):.3f}" for row, of in curves.items())
    return panel.svg(f"Reliability of {len(curves)} rows; their calibration errors: {errors}.")


def _decision(series: Series, title: str, rows: Mapping[str, Risks]) -> str:
    curves = {row: of.decision for row, of in rows.items()}
    first = next(iter(curves.values()))
    top = max(float(values.max()) for of in curves.values() for values in (of.model, of.everyone))
    low, high = -0.3 * top, 1.08 * top
    panel = Panel(title, (0, float(first.thresholds[-1])), (low, high), left=56)
    panel.x_axis(np.linspace(0, 0.5, 6), "threshold at which one acts", "{:.0%}".format)
    panel.y_axis(ticks(low, high), "net benefit per note")
    panel.line((0, first.thresholds[-1]), (0, 0), "axis", "act on none")
    _above(panel, first.thresholds, first.everyone, low, "chance", "act on all")
    for row, of in curves.items():
        _above(panel, of.thresholds, of.model, low, series.kinds[row], series.names[row])
    at = {series.names[row]: np.interp(0.2, of.thresholds, of.model) for row, of in curves.items()}
    told = "; ".join(f"{name} {value:.3f}" for name, value in at.items())
    return panel.svg(f"Net benefit of {len(curves)} rows; at a threshold of 20 %: {told}.")


def _above(panel: Panel, xs: np.ndarray, ys: np.ndarray, low: float, kind: str, told: str) -> None:
    """Draws the parts of a line that are in the panel."""
    inside = ys >= low
    for part in np.split(np.arange(len(xs)), np.flatnonzero(np.diff(inside)) + 1):
        if inside[part[0]]:
            panel.line(xs[part], ys[part], kind, told)
