"""The figure of a reproduced table on groups of patients."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxlora.eval.subgroups import LEAST, Group
from jaxlora.reproduce.page.figures import Figure, names_of
from jaxlora.reproduce.page.svg import Panel, ticks
from jaxlora.reproduce.results import Table

_LINE, _HEADING = 20, 1.2  # the height of a group, and of the heading of an attribute, in groups


def subgroups(table: Table, found: Mapping[str, tuple[str, Sequence[Group]]]) -> Figure | None:
    """Returns a panel for every task whose runs have groups: the AUROC in each, with its interval."""
    names = names_of(table)
    drawn = {column: found[column.name] for column in table.columns if column.name in found}
    drawn = {column: (row, of) for column, (row, of) in drawn.items() if any(group.shown for group in of)}
    if not drawn:
        return None
    best = {column.title.partition(" (")[0]: names[row] for column, (row, _) in drawn.items()}
    told = "; ".join(f"{title}: {name}" for title, name in best.items())
    if len(set(best.values())) == 1:
        told = f"{' and '.join(best)}: {next(iter(best.values()))}"
    seeds = f" Values are means over the {len(table.seeds)} seeds." if len(table.seeds) > 1 else ""
    caption = (
        "AUROC (of several classes or labels the mean of each against the rest) with its 95 % interval over patients, "
        f"and the patients of each group, of the row with the highest value of a task ({told}).{seeds} Groups of fewer "
        f"than {LEAST} patients, or of one outcome alone, and those from which one could be reckoned, are not shown."
    )
    panels = tuple(_subgroups(column.title, of) for column, (_, of) in drawn.items())
    return Figure("groups", "Groups of patients", caption, panels)


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
                panel.words(panel.at(50, place)[0] + 6, place + 0.68, "not shown", kind="aside")
            place += 1
    told = "; ".join(f"{group.attribute} {group.name} {100 * group.auroc:.1f}" for group in shown)
    return panel.svg(f"AUROC by group: {told}.")
