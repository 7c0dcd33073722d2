"""A reproduced table as one HTML file that needs nothing else: no script, no font, no picture of another file.

It holds what the JSON of the table holds and what the figures are drawn from: means, intervals and counts. No text of
a note and no identifier, keyed or not, is in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from jaxlora import files
from jaxlora.reproduce.cells import about_cells, about_pairs, compared, told, words
from jaxlora.reproduce.page import curves, figures, forests, groups
from jaxlora.reproduce.page.figures import Figure
from jaxlora.reproduce.page.rankings import rankings
from jaxlora.reproduce.page.risks import risks
from jaxlora.reproduce.page.style import STYLE
from jaxlora.reproduce.results import PASS, Cell, Column, Difference, Table, TableRow

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
    of_labels = curves.frequencies(table, folder)
    drawn = [forests.forest(table), *rankings(table, ranked, of_labels), *risks(table, ranked)]
    drawn.append(groups.subgroups(table, curves.groups(table, folder)))
    drawn.append(figures.perplexities(table, curves.losses(table, folder)))
    drawn = [figure for figure in drawn if figure]
    title = table.title
    sections = [
        ("run", "What was run", _run(table, curves.patients(table, folder))),
        ("table", "The table", _table(table)),
        *([("pairs", "Rows compared", _pairs(table))] if table.pairs else []),
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
    verdicts = [cell.verdict for row in run for cell in row.every_cell if cell.verdict]
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
    columns = table.every_column
    best = {number: _best(table, number) for number in range(len(columns))}
    body, base, headed = [], None, figures.with_heading(table.rows)
    for row in table.rows:
        if row.base != base and row.base in headed:
            body.append(_group(row.base, len(columns)))
        base = row.base
        body.append(_row(columns, row, best))
    values = (
        told(cell.value, c.unit)
        for row in table.rows
        for cell, c in zip(row.every_cell, columns, strict=True)
        if cell.value is not None
    )
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in _remarks(table))
    return _cards("row", columns, body, values, _caption(table)) + (f"<ul>{remarks}</ul>" if remarks else "")


def _cards(first: str, columns: Sequence[Column], body: Iterable[str], values: Iterable[str], caption: str) -> str:
    """A table that a narrow screen shows as cards, one a row, with the names and the values of its cells in columns."""
    head = "".join(
        f'<th scope="col" role="columnheader">{escape(name)}</th>' for name in [first, *(c.title for c in columns)]
    )
    names = max(len(_short(column)) for column in columns)
    widths = f"--names: {min(names, 10)}ch; --values: {max(map(len, values), default=1) + 1}ch"
    return (
        f'<table class="cards" role="table" style="{widths}"><caption>{escape(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table>'
    )


def _group(base: str, columns: int) -> str:
    return f'<tr role="row"><th scope="rowgroup" role="rowheader" colspan="{columns + 1}">{escape(base)}</th></tr>'


def _caption(table: Table) -> str:
    text = about_cells(table)
    if any(_best(table, number) for number in range(len(table.columns))):
        text += " The best value of a column is underlined, which does not mean that it is better than the next: see "
        text += "the rows compared." if table.pairs else "the intervals."
    return text


def _pairs(table: Table) -> str:
    columns, body, base, values = table.pair_columns, [], None, []
    for pair in table.pairs:
        if pair.base != base:
            base = pair.base
            body.append(_group(base, len(columns)))
        cells = []
        for column in columns:
            difference = pair.of(column)
            cells.append(_difference(column, difference))
            values += [compared(difference, column.unit).value] if difference else []
        head = f'<tr role="row"><th scope="row" role="rowheader">{escape(pair.title)}</th>'
        body.append(f"{head}{''.join(cells)}</tr>")
    return _figure(forests.differences(table)) + _cards("rows", columns, body, values, about_pairs(table))


def _difference(column: Column, difference: Difference | None) -> str:
    if difference is None:
        return _filled(_short(column), "–", [], "")
    of = compared(difference, column.unit)
    parts = [("interval", f"({of.interval})"), ("p", f"p {of.p}"), ("p", f"Holm {of.holm}")]
    parts += [("p", f"DeLong {of.delong}")] if of.delong else []
    value = of.value + ("*" if of.significant else "")
    return _filled(_short(column), value, [_part(kind, text) for kind, text in parts], "")


def _remarks(table: Table) -> Iterator[str]:
    if any(row.as_published for row in table.rows):
        yield (
            "As published: the published code added a downstream adapter and never put it in the forward pass, so "
            "these rows repeat the row without one; the rows beside them have both adapters at work."
        )
    yield from table.remarks


def _best(table: Table, number: int) -> str:
    """The row with the best value of a column, of those that count."""
    rows = [row for row in table.rows if row.every_cell[number].low is not None and not row.as_published]
    if len(rows) < 2:
        return ""
    better = min if table.every_column[number].unit == "perplexity" else max
    return better(rows, key=lambda row: row.every_cell[number].value).name


def _row(columns: Sequence[Column], row: TableRow, best: dict[int, str]) -> str:
    badge = '<span class="badge">its downstream adapter is not in the forward pass</span>' if row.as_published else ""
    published = ' class="published"' if row.as_published else ""
    head = f'<tr role="row"{published}><th scope="row" role="rowheader">{escape(figures.short(row))}{badge}</th>'
    filled = list(zip(columns, row.every_cell, strict=True))
    if row.not_run:
        printed = " · ".join(
            f"{_short(column)} {words(cell, column.unit).printed}"
            for column, cell in filled
            if cell.printed is not None
        )
        paper = f"<small>the paper prints {escape(printed)}</small>" if printed else ""
        reason = f"not run: {escape(row.not_run)}"
        return f'{head}<td class="reason" role="cell" colspan="{len(filled)}">{reason}<br>{paper}</td></tr>'
    cells = [_cell(column, cell, best[number] == row.name) for number, (column, cell) in enumerate(filled)]
    return f"{head}{''.join(cells)}</tr>"


def _cell(column: Column, cell: Cell, best: bool) -> str:
    of, parts = words(cell, column.unit), []
    if of.sd:
        parts.append(_part("sd", f"± {of.sd}"))
    if of.interval:
        parts.append(_part("interval", f"({of.interval})"))
    if of.printed:
        parts.append(_part("printed", f"[{of.printed}{f' = {of.corrected}' if of.corrected else ''}]"))
    if of.mark:
        kind, verdict = ("pass", "agrees") if cell.verdict == PASS else ("differs", "differs")
        parts.append(_part(f"verdict {kind}", f"{of.mark} {verdict}"))
    return _filled(_short(column), of.value, parts, "best" if best else "")


def _part(kind: str, text: str) -> str:
    return f'<span class="{kind}">{escape(text)}</span>'


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
