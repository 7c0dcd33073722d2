"""The figures of a reproduced table: forest plots, ROC and precision-recall, label frequency, perplexity."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jaxlora.reproduce.curves import GRID, Curves, Losses
from jaxlora.reproduce.results import Column, Table, TableRow
from jaxlora.reproduce.svg import SERIES, Panel, ticks
from jaxlora.reproduce.tables import BASES, PLANS

# Of a forest plot: the height of a row, its title with its interval below, and of the heading of a base, in rows.
_LINE, _HEADING = 34, 0.7
_LONGEST = 34  # letters of a title that leave room for the number beside it
_UNITS = {"percent": "AUROC, %", "perplexity": "perplexity", "seconds": "seconds", "count": "count"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of the page.

    Attributes:
      name: of its anchor. title, caption: in words. panels: SVG.
      legend: (class of the colour, title of the row); empty where the panels say it themselves.
    """

    name: str
    title: str
    caption: str
    panels: tuple[str, ...]
    legend: tuple[tuple[str, str], ...] = ()


def forest(table: Table) -> Figure | None:
    """Returns a panel for every column that has intervals: ours with its interval, and the printed figure."""
    panels = []
    for number, column in enumerate(table.columns):
        if any(row.cells[number].low is not None for row in table.rows):
            panels.append(_forest(table, number, column))
    caption = (
        "Dot and line: our value and its 95 % interval over the patients of the test split. Diamond: the figure that "
        "the paper prints, which has no interval."
    )
    if any(column.unit == "percent" for column in table.columns):
        caption += " The dashed line is chance."
    return Figure("forest", f"{_of(table)} with intervals", caption, tuple(panels)) if panels else None


def _forest(table: Table, number: int, column: Column) -> str:
    rows = _drawn(table, number)
    known = [
        value
        for row in rows
        for value in (row.cells[number].value, row.cells[number].low, row.cells[number].high, row.cells[number].printed)
        if value is not None
    ]
    chance = column.unit == "percent"
    low, high = min([*known, 50] if chance else known), max(known)
    room = 0.04 * (high - low) or 1.0
    low, high = low - room, high + room
    headed = with_heading(table.rows) & {row.base for row in rows}
    length = len(rows) + _HEADING * len(headed)
    panel = Panel(column.title, (low, high), (length, 0), height=74 + _LINE * length, left=12)
    panel.x_axis(ticks(low, high), _UNITS[column.unit])
    if chance:
        panel.line((50, 50), (0, length), "chance", "chance")
    place, base = 0.0, None
    for row in rows:
        if row.base != base:
            base = row.base
            if base in headed:
                place += _HEADING
                panel.words(12, place - 0.12, base, kind="group")
        cell, y = row.cells[number], place + 0.72
        place += 1
        bounds = f" ({_told(cell.low, column)}–{_told(cell.high, column)})" if cell.low is not None else ""
        panel.words(12, y - 0.36, _beside_number(short(row)), kind="as-published" if row.as_published else "label")
        panel.words(348, y - 0.36, f"{_told(cell.value, column)}{bounds}", "end", "number")
        if cell.low is not None:
            panel.line((cell.low, cell.high), (y, y), "interval")
        if cell.printed is not None:
            panel.diamond(cell.printed, y)
        if cell.value is not None:
            panel.point(cell.value, y, "published" if row.as_published else "ours")
    names = names_of(table)
    ours = "; ".join(f"{names[row.name]} {_told(row.cells[number].value, column)}" for row in rows)
    return panel.svg(f"Ours, row by row: {ours}.")


def _drawn(table: Table, number: int) -> list[TableRow]:
    """Returns the rows that a column has a value of, and those that such rows are put on, which they are named by."""
    rows = []
    for place, row in enumerate(table.rows):
        upon = itertools.takewhile(lambda other: other.title.startswith("++"), table.rows[place + 1 :])
        group = [row, *(upon if row.title.startswith("+ ") else ())]
        if any(other.cells[number].value is not None for other in group):
            rows.append(row)
    return rows


def rankings(table: Table, curves: Sequence[Curves]) -> list[Figure]:
    """Returns the ROC, precision-recall and label-frequency figures of the tasks that have them."""
    if not curves:
        return []
    colours, legend = colours_of(table, [of.row for of in curves])
    some = (
        f" The {len(legend)} rows with the highest mean are coloured, the others grey."
        if "" in colours.values()
        else ""
    )
    first = " Curves are of the first seed." if len(table.seeds) > 1 else ""
    tasks = [column for column in table.columns if any(of.task == column.name for of in curves)]
    roc, pr, frequency = [], [], []
    for column in tasks:
        here = [of for of in curves if of.task == column.name]
        here.sort(key=lambda of: colours[of.row] != "")  # the grey ones below
        roc.append(_lines(table, column, here, colours, "1 − specificity", "sensitivity", lambda of: of.sensitivity))
        pr.append(_lines(table, column, here, colours, "sensitivity", "precision", lambda of: of.precision))
        if here[0].kind == "multilabel":
            frequency.append(_frequency(table, column, here, colours))
    mean = " Of several labels the curve is the mean over those with both classes, each against the rest."
    figures = [
        Figure("roc", "ROC curves", f"The dashed line is chance.{mean}{some}{first}", tuple(roc), legend),
        Figure(
            "pr",
            "Precision and sensitivity",
            f"The dashed line is the share of positives.{mean}{some}{first}",
            tuple(pr),
            legend,
        ),
    ]
    if frequency:
        caption = (
            "Mean AUROC of the labels by how many test notes have them, in half decades. Labels with few positives "
            f"have wide intervals of their own.{some}{first}"
        )
        figures.append(Figure("frequency", "Frequent and rare labels", caption, tuple(frequency), legend))
    return figures


def _lines(
    table: Table, column: Column, curves: Sequence[Curves], colours: dict[str, str], x: str, y: str, of: Callable
) -> str:
    panel = Panel(column.title, (0, 1), (0, 1))
    panel.x_axis((0, 0.25, 0.5, 0.75, 1), x)
    panel.y_axis((0, 0.25, 0.5, 0.75, 1), y)
    chance = (0, 1) if y == "sensitivity" else (curves[0].prevalence, curves[0].prevalence)
    panel.line((0, 1), chance, "chance", "chance")
    names = names_of(table)
    for curve in curves:
        panel.line(GRID, of(curve), colours[curve.row] or "faint", names[curve.row])
    return panel.svg(f"{y.capitalize()} against {x} of {len(curves)} rows.")


def _frequency(table: Table, column: Column, curves: Sequence[Curves], colours: dict[str, str]) -> str:
    counts = np.concatenate([of.strata[:, 0] for of in curves])
    areas = np.concatenate([of.strata[:, 1] for of in curves]) * 100
    low, high = counts.min() / 1.3, counts.max() * 1.3
    bottom, top = min(areas.min(), 50) - 2, areas.max() + 2
    panel = Panel(column.title, (low, high), (bottom, top), log_x=True)
    decades = [tick for power in range(7) for tick in (10**power, 3 * 10**power) if low <= tick <= high]
    panel.x_axis(decades, "test notes that have the label", "{:,}".format)
    panel.y_axis(ticks(bottom, top), "mean AUROC, %")
    panel.line((low, high), (50, 50), "chance", "chance")
    names = names_of(table)
    for of in curves:
        kind = colours[of.row] or "faint"
        panel.line(of.strata[:, 0], of.strata[:, 1] * 100, kind, names[of.row])
        for count, area, _ in of.strata:
            panel.point(count, area * 100, kind)
    labels = int(curves[0].strata[:, 2].sum())
    return panel.svg(f"Mean AUROC of {labels} labels by their frequency, of {len(curves)} rows.")


def perplexities(table: Table, found: Sequence[Losses]) -> Figure | None:
    """Returns a panel for every base: perplexity of the training notes by update."""
    if not found:
        return None
    panels, legend = [], {}
    for base in dict.fromkeys(of.base for of in found):
        here = [of for of in found if of.base == base]
        steps, values = (np.concatenate([getattr(of, name) for of in here]) for name in ("steps", "perplexity"))
        low, high = float(values.min()) * 0.95, float(values.max()) * 1.05
        panel = Panel(base or "Perplexity", (0, float(steps.max())), (low, high), log_y=True)
        panel.x_axis(ticks(0, float(steps.max())), "update", "{:,.0f}".format)
        rounded = [first * 10**power for power in range(6) for first in (1, 1.5, 2, 3, 5, 7)]
        panel.y_axis([tick for tick in rounded if low <= tick <= high], "perplexity")
        names = names_of(table)
        for of in here:
            legend[names[of.row]] = kind = legend.get(names[of.row]) or f"s{len(legend) % SERIES}"
            panel.line(of.steps, of.perplexity, kind, names[of.row])
        panels.append(panel.svg(f"Perplexity of the training notes by update, of {len(here)} rows."))
    caption = "Perplexity of the training notes, the running mean over a twentieth of the run; a logarithmic scale."
    return Figure(
        "perplexity",
        "Perplexity while training",
        caption,
        tuple(panels),
        tuple((kind, title) for title, kind in legend.items()),
    )


def colours_of(table: Table, names: Sequence[str]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """Returns the class of each row's colour, "" for grey, and the legend: of all rows, or of the best."""
    rows = [row for row in table.rows if row.name in names]
    if len(rows) > SERIES:
        best = sorted(rows, key=_mean, reverse=True)[:SERIES]
        rows = [row for row in rows if row in best]
    colours = dict.fromkeys(names, "") | {row.name: f"s{number}" for number, row in enumerate(rows)}
    names = names_of(table)
    return colours, tuple((colours[row.name], names[row.name]) for row in rows)


def _mean(row: TableRow) -> float:
    return float(np.mean([cell.value for cell in row.cells if cell.value is not None]))


def _of(table: Table) -> str:
    return "Perplexities" if table.number == 2 else "AUROCs"


def names_of(table: Table) -> dict[str, str]:
    """Returns what each row is called where it stands alone: "+ …" after its base, "++ …" after what it is put on."""
    found, upper, above = {}, "", {}
    for line in PLANS[table.number].lines:  # what a row is put on may not have been asked for
        upper = f"{BASES[line.base].title} {line.title}" if line.title.startswith("+ ") else upper
        above[line.name] = upper
    for row in table.rows:
        before = above.get(row.name, "") if row.title.startswith("++") else row.base
        found[row.name] = f"{before} {short(row)}" if row.title.startswith("+") else short(row)
    titles = list(found.values())
    return {
        row.name: f"{row.base}, {found[row.name]}" if titles.count(found[row.name]) > 1 else found[row.name]
        for row in table.rows
    }


def with_heading(rows: Sequence[TableRow]) -> set[str]:
    """Returns the bases that have more than one of the rows: the title of a row alone says whose it is."""
    bases = [row.base for row in rows]
    return {base for base in bases if bases.count(base) > 1}


def _beside_number(title: str) -> str:
    return title.partition(" (")[0] if len(title) > _LONGEST else title


def short(row: TableRow) -> str:
    """Returns the title of a row without what it says of the published adapter."""
    mark = ", as published"
    return row.title.partition(mark)[0] + mark if row.as_published else row.title


def _told(value: float | None, column: Column) -> str:
    if value is None:
        return "not run"
    return f"{value:.1f}" if column.unit == "percent" else f"{value:.3g}"
