"""A reproduced table as LaTeX: `table` environments that need `booktabs` alone."""

from collections.abc import Iterable, Sequence

from jaxlora.reproduce.cells import about_cells, about_pairs, compared, words
from jaxlora.reproduce.markdown import remarks
from jaxlora.reproduce.results import Cell, Column, Difference, Table

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
_SPECIAL |= {"±": r"$\pm$", "−": "$-$", "<": "$<$", ">": "$>$", "≠": r"$\neq$", "✓": r"$\surd$", "×": r"$\times$"}


def write(table: Table) -> str:
    """Returns the table; each cell has ours, under it the interval, and under that the paper's figure. A second table
    compares rows: the difference, under it its interval, and under that p."""
    rows = []
    for row in table.rows:
        pairs = zip(row.every_cell, table.every_column, strict=True)
        reason = f"not run: {row.not_run}" if row.not_run else ""
        rows.append((row.base, row.title, [_cell(cell, column) for cell, column in pairs], reason))
    about = f"{table.title}. {table.metric}. {about_cells(table)} {table.no_verdict}"
    text = f"% {table.command}\n"
    text += _environment(f"reproduced-{table.number}", about, "row", table.every_column, rows, remarks(table))
    if table.pairs:
        columns = table.pair_columns
        rows = [(pair.base, pair.title, [_difference(pair.of(c), c) for c in columns], "") for pair in table.pairs]
        about = f"{table.title}: rows compared. {about_pairs(table)}"
        text += _environment(f"compared-{table.number}", about, "rows", columns, rows, ())
    return text


def _environment(
    name: str,
    about: str,
    first: str,
    columns: Sequence[Column],
    rows: Iterable[tuple[str, str, list[list[str]], str]],
    below: Iterable[str],
) -> str:
    """Returns one table.

    Args:
      name: of its label. about: its caption. first: the heading of the first column.
      rows: (group, title, the three lines of each cell, a line of its own or ""). below: sentences under it.
    """
    heads = [first, *(escaped(column.title.partition(" (")[0]) for column in columns)]
    lines = [r"\begin{table}", r"\centering\small", f"\\caption{{{escaped(about.strip())}}}", f"\\label{{tab:{name}}}"]
    lines += [f"\\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule", f"{' & '.join(heads)} \\\\"]
    group = ""
    for base, title, cells, reason in rows:
        if base != group:
            group = base
            lines += [r"\midrule", f"\\multicolumn{{{len(heads)}}}{{l}}{{\\textit{{{escaped(base)}}}}} \\\\"]
        for part in range(3):
            texts = [escaped(cell[part]) for cell in cells]
            if part == 0 or any(texts):
                lines.append(f"{' & '.join([escaped(title) if part == 0 else '', *texts])} \\\\")
        if reason:
            lines.append(f"\\multicolumn{{{len(heads)}}}{{l}}{{\\quad {escaped(reason)}}} \\\\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par\\footnotesize {escaped(sentence)}" for sentence in below]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Returns text in which no character means anything to LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _cell(cell: Cell, column: Column) -> list[str]:
    """Returns what stands in the three lines of a cell."""
    of = words(cell, column.unit)
    printed = of.printed + (f" = {of.corrected}" if of.corrected else "")
    value = of.value + (f" ± {of.sd}" if of.sd else "") + (f" {of.mark}" if of.mark else "")
    return [value, f"({of.interval})" if of.interval else "", f"[{printed}]" if printed else ""]


def _difference(difference: Difference | None, column: Column) -> list[str]:
    if difference is None:
        return ["–", "", ""]
    of = compared(difference, column.unit)
    value = of.value + ("*" if of.significant else "")
    return [value, f"({of.interval})", f"{of.p}; {of.holm}" + (f"; {of.delong}" if of.delong else "")]
