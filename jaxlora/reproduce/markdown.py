"""A reproduced table as Markdown."""

from jaxlora.reproduce.results import DIFFERS, PASS, Cell, Column, Table, TableRow


def write(table: Table) -> str:
    """Returns the table: ours with its interval, the paper's in brackets, the verdict, and what is to be said of it."""
    averages = has_averages(table)
    heads = [column.title for column in table.columns] + (["average"] if averages else [])
    lines = [f"# {table.title}", "", f"{table.metric}.", ""]
    lines += [f"Each cell: ours, its 95 % interval over patients, [the paper's]; {_marks(table)}", ""]
    lines += [f"| row | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    base = ""
    for row in table.rows:
        if row.base != base:
            base = row.base
            lines.append(f"| **{base}** |" + " |" * len(heads))
        lines.append(_row(row, table.columns, averages))
    lines.append("")
    lines += [f"* {sentence}" for sentence in remarks(table)]
    return "\n".join(lines) + "\n"


def has_averages(table: Table) -> bool:
    """Returns whether a table has a column of averages."""
    return any(row.average is not None or row.printed_average is not None for row in table.rows)


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
        said.append(f"Means over seeds {', '.join(map(str, table.seeds))}; ± is the standard deviation over them.")
    for name, splits in table.counts.items():
        said.append(f"{name}: " + ", ".join(f"{count:,} {split}" for split, count in splits.items()) + " notes.")
    said.append(f"Made by `{table.command}`.")
    return said


def _marks(table: Table) -> str:
    if table.no_verdict:
        return table.no_verdict
    return f"✓ {PASS}, ≠ {DIFFERS}. Averages: ours, [the paper's], and where that is wrong = the mean of its cells."


def _row(row: TableRow, columns: tuple[Column, ...], averages: bool) -> str:
    cells = [_cell(cell, column) for cell, column in zip(row.cells, columns, strict=True)]
    if averages:
        cells.append(_average(row))
    title = f"{row.title} (not run: {row.not_run})" if row.not_run else row.title
    return f"| {title} | {' | '.join(cells)} |"


def _cell(cell: Cell, column: Column) -> str:
    parts = [told(cell.value, column.unit) if cell.value is not None else "–"]
    if cell.sd is not None:
        parts[0] += f" ± {told(cell.sd, column.unit)}"
    if cell.low is not None and cell.high is not None:
        parts.append(f"({told(cell.low, column.unit)}–{told(cell.high, column.unit)})")
    if cell.printed is not None:
        parts.append(f"[{told(cell.printed, column.unit)}]")
    return " ".join(parts + {PASS: ["✓"], DIFFERS: ["≠"]}.get(cell.verdict, []))


def _average(row: TableRow) -> str:
    parts = ["–" if row.average is None else f"{row.average:.2f}"]
    if row.printed_average is not None:
        parts.append(f"[{row.printed_average:.2f}{corrected(row)}]")
    return " ".join(parts)


def corrected(row: TableRow) -> str:
    """Returns the true mean of the printed cells, where the printed average is another."""
    if row.true_average is None or abs(row.true_average - row.printed_average) < 0.01:
        return ""
    return f" = {row.true_average:.2f}"


def told(value: float, unit: str) -> str:
    """Returns a figure as a table prints it."""
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "seconds":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    return f"{value:.3f}" if unit == "perplexity" else f"{value:.2f}"
