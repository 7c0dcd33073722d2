"""The figures of a reproduced table on calibration and on groups of patients."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxlora.eval.calibration import ece
from jaxlora.eval.subgroups import LEAST, Group
from jaxlora.reproduce.curves import Curves
from jaxlora.reproduce.figures import Figure, colours_of, names_of
from jaxlora.reproduce.results import Table
from jaxlora.reproduce.svg import Panel, ticks

_LINE, _HEADING = 20, 1.2  # the height of a group, and of the heading of an attribute, in groups


def calibration(table: Table, found: Sequence[Curves]) -> Figure | None:
    """Returns a panel for every task: what share of the notes has an outcome, by the probability that was given it."""
    if not found:
        return None
    colours, legend = colours_of(table, [of.row for of in found])
    names, panels = names_of(table), []
    for column in table.columns:
        here = sorted((of for of in found if of.task == column.name), key=lambda of: colours[of.row] != "")
        if not here:
            continue
        top = max(max(of.reliability.predicted.max(), of.reliability.observed.max()) for of in here)
        top = min(1.0, 1.05 * float(top))
        panel = Panel(column.title, (0, top), (0, top))
        panel.x_axis(ticks(0, top), "probability given")
        panel.y_axis(ticks(0, top), "share that has it")
        panel.line((0, top), (0, top), "chance", "perfect")
        for of in here:
            kind = colours[of.row] or "faint"
            slope = "" if np.isnan(of.slope) else f", slope {of.slope:.2f}"
            told = f"{names[of.row]}: ECE {ece(of.reliability):.3f}{slope}"
            panel.line(of.reliability.predicted, of.reliability.observed, kind, told)
            for x, y in zip(of.reliability.predicted, of.reliability.observed, strict=True):
                panel.point(x, y, kind)
        errors = "; ".join(f"{names[of.row]} {ece(of.reliability):.3f}" for of in here)
        panels.append(panel.svg(f"Reliability of {len(here)} rows; their calibration errors: {errors}."))
    caption = (
        "Bins of as many notes each, of the first seed, not recalibrated; on the dashed line a probability is "
        "what it says. All labels together; of one of several classes whether the most probable one is right. "
        "Weighted classes make a score too high for the rare one."
    )
    return Figure("calibration", "Calibration", caption, tuple(panels), legend)


def subgroups(table: Table, found: Mapping[str, tuple[str, Sequence[Group]]]) -> Figure | None:
    """Returns a panel for every task whose runs have groups: the AUROC in each, with its interval."""
    names, panels, rows = names_of(table), [], []
    for column in table.columns:
        if column.name in found and any(group.shown for group in found[column.name][1]):
            row, groups = found[column.name]
            panels.append(_subgroups(column.title, groups))
            rows.append(f"{column.title.partition(' (')[0]} {names[row]}")
    caption = (
        "AUROC with its 95 % interval over patients, and the patients of each group, of the row with the highest value "
        f"of the task ({'; '.join(rows)}). Groups of fewer than {LEAST} patients, and those from which one could be "
        "reckoned, are not shown."
    )
    return Figure("groups", "Groups of patients", caption, tuple(panels)) if panels else None


def _subgroups(title: str, groups: Sequence[Group]) -> str:
    shown = [group for group in groups if group.shown and np.isfinite(group.auroc)]
    ends = [100 * end for group in shown for end in (group.auroc, group.low, group.high) if np.isfinite(end)]
    low, high = min([*ends, 50.0]) - 2, max(ends, default=60.0) + 2
    attributes = list(dict.fromkeys(group.attribute for group in groups))
    length = len(groups) + _HEADING * len(attributes)
    panel = Panel(title, (low, high), (length, 0), height=74 + _LINE * length, left=150)
    panel.x_axis(ticks(low, high, 4), "AUROC, %")
    panel.line((50, 50), (0, length), "chance", "chance")
    place = 0.0
    for attribute in attributes:
        place += _HEADING
        panel.words(6, place - 0.25, attribute.replace("_", " "), kind="group")
        for group in (group for group in groups if group.attribute == attribute):
            patients = f" ({group.patients:,})" if group.shown else ""
            panel.words(6, place + 0.68, f"{group.name}{patients}", kind="label")
            if group in shown:
                panel.line((100 * group.low, 100 * group.high), (place + 0.5, place + 0.5), "interval")
                panel.point(100 * group.auroc, place + 0.5, "ours")
            else:
                panel.words(156, place + 0.68, "one class only" if group.shown else "not shown", kind="aside")
            place += 1
    told = "; ".join(f"{group.attribute} {group.name} {100 * group.auroc:.1f}" for group in shown)
    return panel.svg(f"AUROC by group: {told}.")
