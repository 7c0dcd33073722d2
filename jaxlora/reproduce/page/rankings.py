"""The figures of a reproduced table on how its rows rank the notes: ROC, precision and sensitivity, label frequency."""

from collections.abc import Callable, Mapping

import numpy as np

from jaxlora.eval.curves import GRID, Curves, by_frequency
from jaxlora.reproduce.page.curves import ByRow
from jaxlora.reproduce.page.figures import Figure, Series, over_seeds, series_of
from jaxlora.reproduce.page.svg import Panel, ticks
from jaxlora.reproduce.results import Column, Table

_QUARTERS = (0, 0.25, 0.5, 0.75, 1)
_FREQUENCY = (
    "Mean AUROC of the labels by how many notes have them, in half decades: training notes where that is known, "
    "else test notes, as the axis says. A label that no such note has is left out. Labels with few positives among the "
    "test notes have wide intervals of their own. Notes are ranked by the label's logits."
)


def rankings(table: Table, found: Mapping[str, ByRow], training: Mapping[str, np.ndarray]) -> list[Figure]:
    """Returns the ROC, precision-recall and label-frequency figures of the tasks that have them.

    Args:
      found: by task. training: how many training notes have each label, of the tasks of which that is known.
    """
    if not found:
        return []
    series = series_of(table, {row for rows in found.values() for row in rows})
    roc, pr, frequency = [], [], []
    for column in (column for column in table.columns if column.name in found):
        here = series.ordered(found[column.name])
        roc.append(_lines(series, column, here, "1 − specificity", "sensitivity", lambda of: of.ranked.sensitivity))
        pr.append(_lines(series, column, here, "sensitivity", "precision", lambda of: of.ranked.precision))
        if next(iter(here.values())).kind == "multilabel":
            frequency.append(_frequency(series, column, here, training.get(column.name)))
    more = f"{series.greys}{over_seeds(table)}"
    mean = " Of several labels the curve is the mean over those with both classes, each against the rest"
    mean += ", ranked by its logits whatever ranks it in the table." if frequency else "."
    told = (
        ("roc", "ROC curves", "The dashed line is chance." + mean, roc),
        ("pr", "Precision and sensitivity", "The dashed line is the share of positives." + mean, pr),
        ("frequency", "Frequent and rare labels", _FREQUENCY, frequency),
    )
    return [
        Figure(name, title, caption + more, tuple(panels), series.legend)
        for name, title, caption, panels in told
        if panels
    ]


def _lines(series: Series, column: Column, rows: ByRow, x: str, y: str, of: Callable[[Curves], np.ndarray]) -> str:
    panel = Panel(column.title, (0, 1), (0, 1))
    panel.x_axis(_QUARTERS, x)
    panel.y_axis(_QUARTERS, y)
    share = next(iter(rows.values())).ranked.prevalence
    panel.line((0, 1), (0, 1) if y == "sensitivity" else (share, share), "chance", "chance")
    for row, curves in rows.items():
        panel.line(GRID, of(curves), series.kinds[row], series.names[row])
    return panel.svg(f"{y.capitalize()} against {x} of {len(rows)} rows.")


def _frequency(series: Series, column: Column, rows: ByRow, training: np.ndarray | None) -> str:
    first = next(iter(rows.values()))
    known = training is not None and training[first.ranked.labels].any()
    of, split = (training, "training") if known else (first.positives, "test")
    strata = {row: by_frequency(curves.ranked.areas, of[curves.ranked.labels]) for row, curves in rows.items()}
    counts, areas = (np.concatenate([found[:, part] for found in strata.values()]) for part in (0, 1))
    areas = areas * 100
    low, high = counts.min() / 1.3, counts.max() * 1.3
    bottom, top = min(areas.min(), 50) - 2, areas.max() + 2
    panel = Panel(column.title, (low, high), (bottom, top), log_x=True)
    decades = [tick for power in range(7) for tick in (10**power, 3 * 10**power) if low <= tick <= high]
    panel.x_axis(decades, f"{split} notes that have the label", "{:,}".format)
    panel.y_axis(ticks(bottom, top), "mean AUROC, %")
    panel.line((low, high), (50, 50), "chance", "chance")
    for row, found in strata.items():
        panel.line(found[:, 0], found[:, 1] * 100, series.kinds[row], series.names[row])
        for count, area, _ in found:
            panel.point(count, area * 100, series.kinds[row])
    labels = int(next(iter(strata.values()))[:, 2].sum())
    return panel.svg(f"Mean AUROC of {labels} labels by how many {split} notes have them, of {len(rows)} rows.")
