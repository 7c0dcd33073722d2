"""What a cell of a table says, in words: Markdown, LaTeX, the page and its figures only arrange them."""

from typing import NamedTuple

from jaxlora.reproduce.results import DIFFERS, PASS, Cell, Difference, Table

MARKS = {PASS: "✓", DIFFERS: "≠"}
LEVEL = 0.05  # below which a p after Holm is marked


class Words(NamedTuple):
    """The parts of a cell, "" where it has none: our value, its spread over seeds and its interval, what the paper
    prints and, where that is wrong, what it should, and the mark of the verdict."""

    value: str
    sd: str
    interval: str
    printed: str
    corrected: str
    mark: str


class Compared(NamedTuple):
    """The parts of a difference: its value and its interval, its p by itself, after Holm, and DeLong's by itself and
    after Holm or "", and whether it is significant after Holm's correction."""

    value: str
    interval: str
    p: str
    holm: str
    delong: str
    significant: bool


def words(cell: Cell, unit: str) -> Words:
    """Returns what a cell says; of one without a run the value is a dash."""

    def of(value: float | None) -> str:
        return "" if value is None else told(value, unit)

    interval = "" if cell.low is None or cell.high is None else f"{of(cell.low)}–{of(cell.high)}"
    parts = of(cell.value) or "–", of(cell.sd), interval, of(cell.printed), of(cell.corrected)
    return Words(*parts, MARKS.get(cell.verdict, ""))


def compared(difference: Difference, unit: str, brief: bool = False) -> Compared:
    """Returns what a difference says: points with a sign, or of perplexities how many times the one is the other."""

    def of(value: float) -> str:
        if unit == "perplexity":
            return told(value, unit, brief)
        return f"{value:+.{1 if brief else 2}f}".replace("-", "−")

    delong = ""
    if difference.delong is not None:
        delong = f"{chance(difference.delong)}, Holm {chance(difference.delong_holm)}"
    interval = f"{of(difference.low)} to {of(difference.high)}"
    chances = chance(difference.p), chance(difference.holm), delong
    return Compared(of(difference.value), interval, *chances, difference.holm < LEVEL)


def chance(p: float) -> str:
    """Returns a p with its sign: "< 0.001" or "= 0.120"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def told(value: float, unit: str, brief: bool = False) -> str:
    """Returns a figure as a table prints it, or `brief` as a picture has room for."""
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "seconds":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if unit == "perplexity":
        return f"{value:.3g}" if brief else f"{value:.3f}"
    return f"{value:.1f}" if brief else f"{value:.2f}"


def about_cells(table: Table) -> str:
    """Returns how a cell is read, in a sentence or two."""
    spread = (
        "± its standard deviation over the seeds, which is no part of the interval, " if len(table.seeds) > 1 else ""
    )
    text = f"Each cell: ours, {spread}(its 95 % interval over the patients of the test split), [what the paper prints]"
    text += "" if table.no_verdict else "; " + ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
    if any(row.average and row.average.corrected is not None for row in table.rows):
        text += ". Where a printed average is not the mean of its cells, = that mean, which ours is compared with"
    return f"{text}."


def about_pairs(table: Table) -> str:
    """Returns how a difference between two rows is read."""
    what = (
        "perplexity of the one row over that of the other" if table.number == 2 else "points of AUROC between two rows"
    )
    text = (
        f"Each cell: {what}, (95 % interval over the same draws of the same patients), p of no difference, and after "
    )
    text += f"Holm's correction for the {table.compared} differences of this table, * where that is below {LEVEL}."
    if table.number == 3:
        text += " Fused is ++ Downstream with both adapters in the forward pass; as published, the second one is inert."
    if len(table.seeds) > 1:
        text += " Rows are means over their seeds."
    count = sum(difference.delong is not None for pair in table.pairs for difference in pair.differences)
    if count:
        first = " of the first seed" if len(table.seeds) > 1 else ""
        text += f" DeLong's p{first} takes notes to be independent; Holm's correction is for the {count} of its kind."
    return text
