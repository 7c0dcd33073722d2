"""The figures of a reproduced table: perplexity, and what all figures of a table share."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlora.reproduce.page.curves import Losses
from jaxlora.reproduce.page.svg import SERIES, Panel, ticks
from jaxlora.reproduce.results import Table, TableRow
from jaxlora.reproduce.tables import BASES, TABLES


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


def perplexities(table: Table, found: Sequence[Losses]) -> Figure | None:
    """Returns a panel for every base: perplexity of the training notes and of the validation notes by update."""
    if not found:
        return None
    panels, legend, names = [], {}, names_of(table)
    for base in dict.fromkeys(of.base for of in found):
        here = [of for of in found if of.base == base]
        values = np.concatenate([values for of in here for values in (of.training, of.validation)])
        low, high = float(values.min()) * 0.95, float(values.max()) * 1.05
        last = max(float(of.steps.max()) for of in here)
        panel = Panel(base or "Perplexity", (0, last), (low, high), log_y=True)
        panel.x_axis(ticks(0, last), "update", "{:,.0f}".format)
        rounded = [first * 10**power for power in range(6) for first in (1, 1.5, 2, 3, 5, 7)]
        panel.y_axis([tick for tick in rounded if low <= tick <= high], "perplexity")
        for of in here:
            legend[names[of.row]] = kind = legend.get(names[of.row]) or f"s{len(legend) % SERIES}"
            panel.line(of.steps, of.training, kind, f"{names[of.row]}, training notes")
            if len(of.validated):
                panel.line(of.validated, of.validation, f"{kind} dashed", f"{names[of.row]}, validation notes")
            for step, value in zip(of.validated, of.validation, strict=True):
                panel.point(step, value, kind)
        last = "; ".join(f"{names[of.row]} {of.validation[-1]:.3g}" for of in here if len(of.validation))
        told = f" The last of the validation notes: {last}." if last else ""
        panels.append(panel.svg(f"Perplexity by update of {len(here)} rows.{told}"))
    caption = "Lines: perplexity of the training notes, the running mean over a twentieth of the run"
    if any(len(of.validated) for of in found):
        caption += ". Dots and dashes: of the validation notes, every token with the same weight"
    caption += f". A logarithmic scale.{over_seeds(table)}"
    series = tuple((kind, title) for title, kind in legend.items())
    return Figure("perplexity", "Perplexity while training", caption, tuple(panels), series)


def over_seeds(table: Table) -> str:
    """Returns the sentence of a caption that says what a curve of several seeds is."""
    return f" Curves are means over the {len(table.seeds)} seeds." if len(table.seeds) > 1 else ""


@dataclasses.dataclass(frozen=True)
class Series:
    """What the rows of a table look like in the figures that show several of them.

    Attributes:
      kinds: the class of each row's colour, by the row's name. names: what each is called where it stands alone.
      legend: of all rows, or of the best. greys: what a caption says of the others; "" where there are none.
    """

    kinds: dict[str, str]
    names: dict[str, str]
    legend: tuple[tuple[str, str], ...]
    greys: str

    def ordered(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what is known of each row with the grey ones first, which are drawn below the others."""
        return dict(sorted(rows.items(), key=lambda pair: self.kinds[pair[0]] != "faint"))


def series_of(table: Table, names: Collection[str]) -> Series:
    """Returns the series of some rows: the best have a colour each."""
    rows = [row for row in table.rows if row.name in names]
    best = sorted(rows, key=_mean, reverse=True)[:SERIES]
    coloured = [row for row in rows if row in best]
    kinds = dict.fromkeys(names, "faint") | {row.name: f"s{number}" for number, row in enumerate(coloured)}
    called = names_of(table)
    greys = f" The {SERIES} rows with the highest mean are coloured, the others grey." if len(rows) > SERIES else ""
    return Series(kinds, called, tuple((kinds[row.name], called[row.name]) for row in coloured), greys)


def _mean(row: TableRow) -> float:
    return float(np.mean([cell.value for cell in row.cells if cell.value is not None]))


def names_of(table: Table) -> dict[str, str]:
    """Returns what each row is called where it stands alone: "+ …" after its base, "++ …" after what it is put on."""
    found, upper, above = {}, "", {}
    for line in TABLES[table.number].rows:  # what a row is put on may not have been asked for
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


def short(row: TableRow) -> str:
    """Returns the title of a row without what it says of the published adapter."""
    mark = ", as published"
    return row.title.partition(mark)[0] + mark if row.as_published else row.title
