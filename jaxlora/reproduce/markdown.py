"""A reproduced table as Markdown."""

from jaxlora.reproduce.cells import about_cells, about_pairs, compared, words
from jaxlora.reproduce.results import Cell, Column, Difference, Pair, Table, TableRow


def write(table: Table) -> str:
    """Returns the table: ours with its interval, the paper's in brackets, the verdict, and what is to be said of it."""
    columns = table.every_column
    lines = [f"# {table.title}", "", f"{table.metric}.", "", about_cells(table), ""]
    lines += [f"{table.no_verdict[:1].upper()}{table.no_verdict[1:]}", ""] if table.no_verdict else []
    lines += _head("row", columns)
    base = ""
    for row in table.rows:
        if row.base != base:
            base = row.base
            lines.append(f"| **{base}** |" + " |" * len(columns))
        lines.append(_row(row, columns))
    lines += ["", *(f"* {sentence}" for sentence in remarks(table))]
    if table.pairs:
        lines += ["", "## Rows compared", "", about_pairs(table), "", *_pairs(table)]
    return "\n".join(lines) + "\n"


def remarks(table: Table) -> list[str]:
    """Returns what stands under a table, in plain text."""
    said = list(table.remarks)
    for row in table.rows:
        if row.adapters:
            wrong = [adapter for adapter in row.adapters if not adapter.as_it_should]
            changed = sorted({adapter.name for adapter in row.adapters if adapter.changed})
            inert = sorted({adapter.name for adapter in row.adapters if adapter.effect == 0})
            told = f"{row.name}: training changed {', '.join(changed) or 'no adapter'}"
            told += f"; without any effect on the logits: {', '.join(inert)}" if inert else ""
            said.append(told + (f". NOT AS IT SHOULD BE in {len(wrong)} runs." if wrong else "."))
    if len(table.seeds) > 1:
        said.append(f"Means over seeds {', '.join(map(str, table.seeds))}.")
    for name, splits in table.counts.items():
        said.append(f"{name}: " + ", ".join(f"{count:,} {split}" for split, count in splits.items()) + " notes.")
    said.append(f"Made by `{table.command}`.")
    return said


def _head(first: str, columns: tuple[Column, ...]) -> list[str]:
    return [f"| {' | '.join([first, *(column.title for column in columns)])} |", "|---|" + "---|" * len(columns)]


def _row(row: TableRow, columns: tuple[Column, ...]) -> str:
    cells = [_cell(cell, column) for cell, column in zip(row.every_cell, columns, strict=True)]
    title = f"{row.title} (not run: {row.not_run})" if row.not_run else row.title
    return f"| {title} | {' | '.join(cells)} |"


def _cell(cell: Cell, column: Column) -> str:
    of = words(cell, column.unit)
    parts = [of.value + (f" ± {of.sd}" if of.sd else ""), f"({of.interval})" if of.interval else ""]
    printed = of.printed + (f" = {of.corrected}" if of.corrected else "")
    return " ".join(filter(None, [*parts, f"[{printed}]" if printed else "", of.mark]))


def _pairs(table: Table) -> list[str]:
    columns = table.pair_columns
    lines, base = _head("rows", columns), ""
    for pair in table.pairs:
        if pair.base != base:
            base = pair.base
            lines.append(f"| **{base}** |" + " |" * len(columns))
        lines.append(f"| {' | '.join([pair.title, *(_difference(pair, column) for column in columns)])} |")
    return lines


def _difference(pair: Pair, column: Column) -> str:
    difference: Difference | None = pair.of(column)
    if difference is None:
        return "–"
    of = compared(difference, column.unit)
    delong = f", DeLong {of.delong}" if of.delong else ""
    return f"{of.value}{'*' if of.significant else ''} ({of.interval}) p {of.p}, Holm {of.holm}{delong}"
