"""Forest plots of a reproduced table: its figures, and the differences between its rows, each with its interval."""

import itertools
from collections.abc import Sequence

from jaxlora.reproduce.cells import compared, told
from jaxlora.reproduce.page.figures import Figure, names_of, short, with_heading
from jaxlora.reproduce.page.svg import WIDTH, Panel, ticks
from jaxlora.reproduce.results import Cell, Column, Pair, Table, TableRow

# The height of a line, its title with its interval below, and of the heading of a base, in lines.
_LINE, _HEADING = 34, 0.7
_LEFT, _RIGHT = 12, WIDTH - 12
_LONGEST = 34  # letters of a title that leave room for the number beside it
_UNITS = {"percent": "AUROC, %", "perplexity": "perplexity"}
_DIFFERENCES = {"percent": "difference, points of AUROC", "perplexity": "ratio of perplexities"}


def forest(table: Table) -> Figure | None:
    """Returns a panel for every column that has intervals: ours with its interval, and the printed figure."""
    panels = []
    for number, column in enumerate(table.every_column):
        if any(row.every_cell[number].low is not None for row in table.rows):
            panels.append(_forest(table, number, column))
    caption = (
        "Dot and line: our value and its 95 % interval over the patients of the test split. Diamond: the figure that "
        "the paper prints, which has no interval, or the mean of its figures where it prints another average."
    )
    if any(column.unit == "percent" for column in table.columns):
        caption += " The dashed line is chance."
    what = "Perplexities" if table.number == 2 else "AUROCs"
    return Figure("forest", f"{what} with intervals", caption, tuple(panels)) if panels else None


def _forest(table: Table, number: int, column: Column) -> str:
    rows = _drawn(table, number)
    cells = [row.every_cell[number] for row in rows]
    theirs = [cell.printed if cell.corrected is None else cell.corrected for cell in cells]
    known = [value for cell in cells for value in (cell.value, cell.low, cell.high)] + theirs
    chance = 50.0 if column.unit == "percent" else None
    headed = with_heading(table.rows)
    bases = [row.base if row.base in headed else "" for row in rows]
    panel, places = _panel(column.title, _UNITS[column.unit], [*known, chance], bases, chance)
    for row, cell, diamond, y in zip(rows, cells, theirs, places, strict=True):
        interval = "" if cell.low is None else f" ({_brief(cell.low, column)}–{_brief(cell.high, column)})"
        kind = "as-published" if row.as_published else "label"
        _words(panel, y, _beside_number(short(row)), f"{_value(cell, column)}{interval}", kind)
        if cell.low is not None:
            panel.line((cell.low, cell.high), (y, y), "interval")
        if diamond is not None:
            panel.diamond(diamond, y)
        if cell.value is not None:
            panel.point(cell.value, y, "published" if row.as_published else "ours")
    names = names_of(table)
    ours = "; ".join(f"{names[row.name]} {_value(cell, column)}" for row, cell in zip(rows, cells, strict=True))
    return panel.svg(f"Ours, row by row: {ours}.")


def differences(table: Table) -> Figure:
    """Returns a panel for every column in which rows are compared: the differences with their intervals."""
    caption = (
        "Dot and line: the difference and its 95 % interval, without any correction; the dot is filled where it is "
        "significant after Holm's. The dashed line is no difference."
    )
    panels = tuple(_differences(table.pairs, column) for column in table.pair_columns)
    return Figure("pairs", "Rows compared", caption, panels)


def _differences(pairs: Sequence[Pair], column: Column) -> str:
    here = [(pair, pair.of(column)) for pair in pairs if pair.of(column)]
    of_ratios = column.unit == "perplexity"
    known = [end for _, difference in here for end in (difference.low, difference.high)]
    none, bases = 1.0 if of_ratios else 0.0, [pair.base for pair, _ in here]
    panel, places = _panel(column.title, _DIFFERENCES[column.unit], [*known, none], bases, none, log=of_ratios)
    said = []
    for (pair, difference), y in zip(here, places, strict=True):
        of = compared(difference, column.unit, brief=True)
        _words(panel, y, pair.title, f"{of.value} ({of.interval})", "label")
        panel.line((difference.low, difference.high), (y, y), "interval")
        panel.point(difference.value, y, "ours" if of.significant else "open")
        said.append(f"{pair.base}, {pair.title}: {of.value}")
    return panel.svg(f"{'; '.join(said)}.")


def _panel(
    title: str, unit: str, known: Sequence[float | None], bases: Sequence[str], none: float | None, log: bool = False
) -> tuple[Panel, list[float]]:
    """Returns a panel with its axis, the headings of its groups and its dashed line, and the height of each line.

    Args:
      known: what has to be within. bases: the group of each line, "" without a heading.
      none: where the dashed line is, of chance or of no difference.
    """
    known = [value for value in known if value is not None]
    low, high = min(known), max(known)
    room = 0.04 * (high - low) or 1.0
    low, high = low / 1.02 if log else low - room, high * 1.02 if log else high + room
    length = len(bases) + _HEADING * len(set(bases) - {""})
    panel = Panel(title, (low, high), (length, 0), height=74 + _LINE * length, left=_LEFT, log_x=log)
    panel.x_axis(ticks(low, high), unit)
    if none is not None:
        panel.line((none, none), (0, length), "chance", "chance")
    places, place, before = [], 0.0, ""
    for base in bases:
        if base and base != before:
            place += _HEADING
            panel.words(_LEFT, place - 0.12, base, kind="group")
        before = base
        places.append(place + 0.72)
        place += 1
    return panel, places


def _words(panel: Panel, y: float, title: str, number: str, kind: str) -> None:
    panel.words(_LEFT, y - 0.36, title, kind=kind)
    panel.words(_RIGHT, y - 0.36, number, "end", "number")


def _brief(value: float, column: Column) -> str:
    return told(value, column.unit, brief=True)


def _value(cell: Cell, column: Column) -> str:
    return "not run" if cell.value is None else _brief(cell.value, column)


def _drawn(table: Table, number: int) -> list[TableRow]:
    """Returns the rows that a column has a value of, and those that such rows are put on, which they are named by."""
    rows = []
    for place, row in enumerate(table.rows):
        upon = itertools.takewhile(lambda other: other.title.startswith("++"), table.rows[place + 1 :])
        group = [row, *(upon if row.title.startswith("+ ") else ())]
        if any(other.every_cell[number].value is not None for other in group):
            rows.append(row)
    return rows


def _beside_number(title: str) -> str:
    """Returns a title, or of a long one the words that tell it apart: its last brackets go, and the first of those that
    it is put on stay ("Trainable ++ Downstream")."""
    if len(title) <= _LONGEST:
        return title
    upon, put, rest = title.partition(" ++ ")
    return f"{upon.partition(' (')[2].rstrip(')')}{put}{rest}" if put else title.partition(" (")[0]
