"""A reproduced table as one HTML file that needs nothing else: no script, no font, no picture of another file.

It holds what the JSON of the table holds and what the figures are drawn from: means, intervals and counts. No text of
a note and no identifier, keyed or not, is in it.
"""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from jaxlora import files
from jaxlora.reproduce import curves, figures, groups
from jaxlora.reproduce.figures import Figure
from jaxlora.reproduce.results import PASS, Cell, Column, Table, TableRow
from jaxlora.reproduce.style import STYLE

# The browser itself refuses whatever would leave the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def write(table: Table, folder: str | Path) -> Path:
    """Writes `FOLDER/table-NUMBER.html` from a table and the run folders that its cells name; returns its path."""
    path = Path(folder) / f"table-{table.number}.html"
    files.write(path, page(table, Path(folder)))
    return path


def page(table: Table, folder: Path) -> str:
    """Returns the whole page.

    Args:
      folder: that the folders of the table's cells are relative to.
    """
    ranked = curves.curves(table, folder)
    drawn = [figures.forest(table), *figures.rankings(table, ranked), groups.calibration(table, ranked)]
    drawn.append(groups.subgroups(table, curves.groups(table, folder)))
    drawn.append(figures.perplexities(table, curves.losses(table, folder)))
    drawn = [figure for figure in drawn if figure]
    title = table.title
    sections = [
        ("run", "What was run", _run(table, curves.patients(table, folder))),
        ("table", "The table", _table(table)),
        *((figure.name, figure.title, _figure(figure)) for figure in drawn),
        *([("adapters", "Did the adapters do what the row says?", _adapters(table))] if _has_adapters(table) else []),
        ("again", "To run it again", _again(table)),
    ]
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>{content}</section>\n'
        for name, heading, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        '<a class="skip" href="#table">To the table</a>'
        f'<header><p class="quiet">Parameter-Efficient Fine-Tuning of LLaMA for the Clinical Domain, reproduced</p>'
        f"<h1>{escape(title)}</h1><p>{escape(_summary(table))}</p>{_notice(table)}</header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>{body}</main></body></html>\n'
    )


def _summary(table: Table) -> str:
    run = [row for row in table.rows if not row.not_run]
    verdicts = [cell.verdict for row in run for cell in row.cells if cell.verdict]
    text = f"{len(run)} of {len(table.rows)} rows were run. "
    if verdicts:
        passed = verdicts.count(PASS)
        text += f"Of {len(verdicts)} cells that can be compared, {passed} agree with the printed figure within the "
        text += f"interval and {len(verdicts) - passed} do not."
    return text


def _notice(table: Table) -> str:
    return f'<p class="notice" role="note">{escape(_sentence(table.no_verdict))}</p>' if table.no_verdict else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _run(table: Table, patients: dict[str, int]) -> str:
    about = {
        "Scale": {"demo": "demo: generated patients and a small base", "full": "full"}.get(table.scale, table.scale),
        "Seeds": ", ".join(map(str, table.seeds)),
        "In the cells": _sentence(table.metric),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in about.items())
    return f"<dl>{listed}</dl>{_counts(table, patients)}"


def _counts(table: Table, patients: dict[str, int]) -> str:
    if not table.counts:
        return ""
    splits = list(dict.fromkeys(split for counts in table.counts.values() for split in counts))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["dataset", *splits, "test patients"])
    rows = []
    for name, counts in table.counts.items():
        cells = [f"{counts[split]:,}" if split in counts else "–" for split in splits]
        cells.append(f"{patients[name]:,}" if name in patients else "–")
        rows.append(f'<tr><th scope="row">{_breakable(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        '<div class="scroll" role="region" aria-label="Notes of each dataset" tabindex="0"><table><caption>Notes of '
        f"each dataset by split, and the patients that the intervals are over.</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """A dataset's name that a narrow screen may break."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _table(table: Table) -> str:
    average = any(row.average is not None or row.printed_average is not None for row in table.rows)
    columns = [*(column.title for column in table.columns), *(["average"] if average else [])]
    head = "".join(f'<th scope="col" role="columnheader">{escape(name)}</th>' for name in ["row", *columns])
    best = {number: _best(table, number) for number in range(len(table.columns))}
    body, base, headed = [], None, figures.with_heading(table.rows)
    for row in table.rows:
        if row.base != base and row.base in headed:
            body.append(
                f'<tr role="row"><th scope="rowgroup" role="rowheader" colspan="{len(columns) + 1}">{escape(row.base)}'
                "</th></tr>"
            )
        base = row.base
        body.append(_row(table, row, best, average))
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in _remarks(table))
    return (
        f'<table class="cards" role="table" style="{_widths(table, columns)}">'
        f'<caption>{escape(_caption(table))}</caption><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table>'
        f"{f'<ul>{remarks}</ul>' if remarks else ''}"
    )


def _caption(table: Table) -> str:
    text = "In brackets the 95 % interval over the patients of the test split; "
    if len(table.seeds) > 1:
        text += "± the standard deviation over the seeds, which is no part of it; "
    text += (
        "printed: what the paper has. The best value of a column is underlined, which does not mean that it is better "
    )
    return text + "than the next: see the intervals."


def _widths(table: Table, columns: Sequence[str]) -> str:
    """How wide the names and the values of the cells are where a narrow screen shows them under each other."""
    names = max(len(name.partition(" (")[0]) for name in columns)
    cells = (pair for row in table.rows for pair in zip(row.cells, table.columns, strict=True))
    values = max((len(_told(cell.value, column)) for cell, column in cells), default=1)
    return f"--names: {min(names, 10)}ch; --values: {values + 1}ch"


def _remarks(table: Table) -> Iterator[str]:
    if any(row.as_published for row in table.rows):
        yield (
            "As published: the published code added a downstream adapter and never put it in the forward pass, so "
            "these rows repeat the row without one; the rows beside them have both adapters at work."
        )
    wrong = [row for row in table.rows if _other_average(row)]
    if wrong:
        yield "Where a printed average is not the mean of the printed cells, that mean is given as well."
    yield from table.remarks


def _other_average(row: TableRow) -> bool:
    """Whether the paper prints an average that is not that of its cells."""
    both = row.printed_average is not None and row.true_average is not None
    return both and abs(row.printed_average - row.true_average) > 0.0051


def _best(table: Table, number: int) -> str:
    """The row with the best value of a column, of those that count."""
    rows = [row for row in table.rows if row.cells[number].low is not None and not row.as_published]
    if len(rows) < 2:
        return ""
    better = min if table.columns[number].unit == "perplexity" else max
    return better(rows, key=lambda row: row.cells[number].value).name


def _row(table: Table, row: TableRow, best: dict[int, str], average: bool) -> str:
    badge = '<span class="badge">its downstream adapter is not in the forward pass</span>' if row.as_published else ""
    published = ' class="published"' if row.as_published else ""
    head = f'<tr role="row"{published}><th scope="row" role="rowheader">{escape(figures.short(row))}{badge}</th>'
    cells = [
        _cell(column, cell, best[number] == row.name)
        for number, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True))
    ]
    if average:
        cells.append(_average(row))
    if row.not_run:
        printed = " · ".join(
            f"{_short(column)} {_told(cell.printed, column)}"
            for column, cell in zip(table.columns, row.cells, strict=True)
            if cell.printed is not None
        )
        told = f"<small>the paper prints {escape(printed)}</small>" if printed else ""
        reason = f"not run: {escape(row.not_run)}"
        return f'{head}<td class="reason" role="cell" colspan="{len(cells)}">{reason}<br>{told}</td></tr>'
    return f"{head}{''.join(cells)}</tr>"


def _cell(column: Column, cell: Cell, best: bool) -> str:
    parts = []
    if cell.low is not None:
        parts.append(f'<span class="interval">[{_told(cell.low, column)}, {_told(cell.high, column)}]</span>')
    if cell.sd is not None:
        parts.append(f'<span class="sd">± {_told(cell.sd, column)} ({cell.runs} seeds)</span>')
    if cell.printed is not None:
        parts.append(f'<span class="printed">printed {_told(cell.printed, column)}</span>')
    if cell.verdict:
        kind, mark = ("pass", "✓ agrees") if cell.verdict == PASS else ("differs", "≠ differs")
        parts.append(f'<span class="verdict {kind}">{mark}</span>')
    return _filled(_short(column), _told(cell.value, column), parts, "best" if best else "")


def _average(row: TableRow) -> str:
    parts = []
    if row.printed_average is not None:
        parts.append(f'<span class="printed">printed {row.printed_average:.2f}</span>')
    if _other_average(row):
        parts.append(f'<span class="printed">in truth {row.true_average:.2f}</span>')
    return _filled("average", "–" if row.average is None else f"{row.average:.2f}", parts, "")


def _filled(name: str, value: str, about: list[str], kind: str) -> str:
    """A cell of the table; a space between its parts keeps them apart for those who hear or copy it."""
    return (
        f'<td class="{f"cell {kind}".strip()}" role="cell" data-column="{escape(name)}">'
        f'<span class="value">{value}</span> <div class="about">{" ".join(about)}</div></td>'
    )


def _short(column: Column) -> str:
    return column.title.partition(" (")[0]


def _figure(figure: Figure) -> str:
    legend = "".join(f'<li><i class="{kind}"></i>{escape(title)}</li>' for kind, title in figure.legend)
    return (
        f'<figure aria-labelledby="{figure.name}"><figcaption>{escape(figure.caption)}</figcaption>'
        f"{f'<ul class=legend>{legend}</ul>' if legend else ''}"
        f'<div class="panels">{"".join(figure.panels)}</div></figure>'
    )


def _has_adapters(table: Table) -> bool:
    return any(row.adapters for row in table.rows)


def _adapters(table: Table) -> str:
    columns = ("row", "adapter", "trained", "its bits", "in the forward pass", "effect on a logit", "as it should be")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    names, rows = figures.names_of(table), []
    for row in table.rows:
        for name in dict.fromkeys(adapter.name for adapter in row.adapters):
            here = [adapter for adapter in row.adapters if adapter.name == name]
            good = sum(adapter.as_it_should for adapter in here)
            effects = [adapter.effect for adapter in here]
            cells: Sequence[str] = (
                escape(name),
                "yes" if here[0].trained else "no",
                _share([adapter.changed for adapter in here], "changed", "the same"),
                "yes" if here[0].active else "no",
                "none" if max(effects) == 0 else f"up to {max(effects):.3g}",
                f'<span class="{"pass" if good == len(here) else "differs"}">{good} of {len(here)} runs</span>',
            )
            told = "".join(f"<td>{cell}</td>" for cell in cells)
            rows.append(f'<tr><th scope="row">{escape(names[row.name])}</th>{told}</tr>')
    return (
        "<p>Hashes of every adapter before the first update and in the evaluated checkpoint, and how far the logits of "
        "the first test notes move when 0.01 is added to its parameters. One that is not in the forward pass moves "
        "none.</p>"
        '<div class="scroll" role="region" aria-label="Adapters" tabindex="0"><table>'
        f"<caption>What became of each adapter.</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div>"
    )


def _share(changed: list[bool], yes: str, no: str) -> str:
    if all(changed) or not any(changed):
        return yes if changed[0] else no
    return f"{yes} in {sum(changed)} of {len(changed)}"


def _again(table: Table) -> str:
    return (
        f"<pre>{escape(table.command)}</pre><p>Finished runs are not run again. Beside this page lie the same table as "
        "Markdown, LaTeX and JSON.</p><p>Nothing here is of one patient: no text, no identifier. The runs themselves, "
        "their predictions and every adapter trained on credentialed notes stay under the agreement of those notes.</p>"
    )


def _told(value: float | None, column: Column) -> str:
    if value is None:
        return "–"
    if column.unit == "count":
        return f"{value:,.0f}"
    if column.unit == "seconds":
        hours, rest = divmod(round(value), 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return f"{value:.3f}" if column.unit == "perplexity" else f"{value:.2f}"
