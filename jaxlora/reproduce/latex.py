"""A reproduced table as LaTeX: one `table` environment that needs `booktabs` alone."""

from jaxlora.reproduce.markdown import corrected, has_averages, remarks, told
from jaxlora.reproduce.results import DIFFERS, PASS, Cell, Column, Table, TableRow

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_MARK = {PASS: r"$^{\surd}$", DIFFERS: r"$^{\neq}$"}


def write(table: Table) -> str:
    """Returns the table; each cell has ours, under it the interval, and under that the paper's figure."""
    averages = has_averages(table)
    heads = [escaped(column.title.partition(" (")[0]) for column in table.columns] + (["average"] if averages else [])
    lines = [
        f"% {table.command}",
        r"\begin{table}",
        r"\centering\small",
        f"\\caption{{{escaped(table.title)}. {escaped(table.metric)}. Below each figure its 95\\,\\% interval over "
        f"patients and, in brackets, what the paper prints. {escaped(_marks(table))}}}",
        f"\\label{{tab:reproduced-{table.number}}}",
        f"\\begin{{tabular}}{{l{'c' * len(heads)}}}",
        r"\toprule",
        f"row & {' & '.join(heads)} \\\\",
    ]
    base = ""
    for row in table.rows:
        if row.base != base:
            base = row.base
            lines += [r"\midrule", f"\\multicolumn{{{len(heads) + 1}}}{{l}}{{\\textit{{{escaped(base)}}}}} \\\\"]
        lines += _row(row, table.columns, averages)
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par\\footnotesize {escaped(sentence)}" for sentence in remarks(table)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Returns text in which no character means anything to LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _marks(table: Table) -> str:
    return table.no_verdict or f"A tick is {PASS}; an unequal sign: {DIFFERS}."


def _row(row: TableRow, columns: tuple[Column, ...], averages: bool) -> list[str]:
    cells = [_cell(cell, column) for cell, column in zip(row.cells, columns, strict=True)]
    if averages:
        own = "--" if row.average is None else f"{row.average:.2f}"
        theirs = "" if row.printed_average is None else f"[{row.printed_average:.2f}{corrected(row)}]"
        cells.append([own, "", theirs])
    title = escaped(row.title)
    lines = [f"{title} & {' & '.join(cell[0] for cell in cells)} \\\\"]
    for part in (1, 2):
        if any(cell[part] for cell in cells):
            lines.append(f" & {' & '.join(cell[part] for cell in cells)} \\\\")
    if row.not_run:
        lines.append(f"\\multicolumn{{{len(cells) + 1}}}{{l}}{{\\quad not run: {escaped(row.not_run)}}} \\\\")
    return lines


def _cell(cell: Cell, column: Column) -> list[str]:
    """Returns what stands in the three lines of a cell."""
    own = "--" if cell.value is None else told(cell.value, column.unit) + _MARK.get(cell.verdict, "")
    if cell.sd is not None:
        own += f" $\\pm$ {told(cell.sd, column.unit)}"
    interval = printed = ""
    if cell.low is not None and cell.high is not None:
        interval = f"{told(cell.low, column.unit)}--{told(cell.high, column.unit)}"
    if cell.printed is not None:
        printed = f"[{told(cell.printed, column.unit)}]"
    return [own, interval, printed]
