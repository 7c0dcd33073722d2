"""The page of a reproduced table: what it says, and what a real browser makes of it."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from jaxlora.reproduce.page import html
from jaxlora.reproduce.page.forests import differences, forest
from jaxlora.reproduce.page.html import page, write
from jaxlora.reproduce.results import PASS, Cell

# The figures of the page without a name or a size, or beyond the screen.
_UNSEEN = """[...document.querySelectorAll('svg')].filter(svg => {
  const box = svg.getBoundingClientRect();
  return box.width < 200 || box.height < 100 || box.right > innerWidth + 1 || !svg.getAttribute('aria-label');
}).map(svg => svg.getAttribute('aria-label'))"""
# The words and dots of the figures that are drawn outside of them.
_OUTSIDE = """[...document.querySelectorAll('svg text, svg circle')].filter(part => {
  const whole = part.closest('svg').getBoundingClientRect(), box = part.getBoundingClientRect();
  return box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1
    || box.bottom > whole.bottom + 1;
}).map(part => part.outerHTML)"""
# The words of a figure that are written over each other; two axes may share the 0 in their corner.
_OVERLAPS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const words = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return words.flatMap(([one, a], i) => words.slice(i + 1)
    .filter(([other, b]) => other !== one && a.left < b.right + 3 && b.left < a.right + 3)
    .filter(([_, b]) => a.top + 3 < b.bottom && b.top + 3 < a.bottom)
    .map(([other, _]) => one + ' | ' + other));
})"""


@pytest.fixture(scope="module", params=("outcomes", "techniques"))
def written(request):
    table, folder = request.getfixturevalue(request.param)
    return table, write(table, folder)


class Balance(HTMLParser):
    """Checks that what is opened is closed, and collects the ids and the links to them."""

    VOID = ("meta", "link", "br", "wbr")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        of = dict(attributes)
        self.ids += [of["id"]] if "id" in of else []
        self.links += [of["href"]] if tag == "a" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_what_is_opened_is_closed_and_every_link_leads_somewhere(written):
    found = Balance()
    found.feed(written[1].read_text())
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    assert found.links and {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_a_row_that_was_not_run_says_why_and_what_the_paper_prints(outcomes):
    text = page(*outcomes)
    assert "not run: give config.bases.umlsbert &lt;folder&gt;" in text
    assert "the paper prints MOR 55.49 · LOS 55.49 · DIAG 55.49" in text


def test_cells_marks_and_averages(outcomes):
    table, folder = outcomes
    text, cell = page(table, folder), table.rows[0].cells[0]
    assert f">{cell.value:.2f}</span>" in text and f"({cell.low:.2f}–{cell.high:.2f})" in text
    assert text.count("✓ agrees") == 6 and text.count("≠ differs") == 12 + 6
    assert text.count('class="published"') == 1
    assert "[58.61 = 59.94]" in text and "(69.00–71.00)" in text
    assert "At demo scale there is no verdict." in text and "A remark." in text
    assert "<td>1,000</td><td>120</td><td>60</td>" in text  # notes of the splits, patients of the test split


def test_rows_compared(outcomes, techniques):
    text = page(*outcomes)
    assert text.count("fused frozen − as published</th>") == 1 and "DeLong = 0.020" in text
    assert "−12.50*" in text and "(−15.50 to −9.00)" in text and "+4.00*" not in text
    assert "ratio of perplexities" in page(*techniques) and "1.037*" in page(*techniques)
    panels = differences(outcomes[0]).panels
    assert len(panels) == 4 and [panel.count('class="dot ours"') for panel in panels] == [1] * 4
    assert [panel.count('class="dot open"') for panel in panels] == [1] * 4
    assert "Rows compared" not in page(dataclasses.replace(outcomes[0], pairs=()), outcomes[1])


def test_figures_follow_what_was_run(outcomes, techniques):
    headings = [re.findall(r"<h2 [^>]*>(.*?)</h2>", page(*given)) for given in (outcomes, techniques)]
    ranked = {
        "ROC curves",
        "Precision and sensitivity",
        "Frequent and rare labels",
        "Calibration of the scores as given",
        "Calibration after scaling",
        "Decision curves",
        "Groups of patients",
    }
    assert ranked <= set(headings[0]) and not ranked & set(headings[1])
    assert "Perplexity while training" in headings[1]


def test_a_row_is_drawn_below_the_one_that_it_is_put_on(outcomes):
    table, _ = outcomes
    rows = tuple(
        dataclasses.replace(row, cells=tuple(Cell(cell.task, printed=55.0) for cell in row.cells))
        if row.name in ("frozen", "lora")
        else row
        for row in table.rows
    )
    words = re.findall(r"<text[^>]*>([^<]*)</text>", forest(dataclasses.replace(table, rows=rows)).panels[0])
    here = words.index("+ Clinical (Frozen)")
    assert words[here + 1] == "not run" and words[here + 2] == "++ Downstream"
    assert "+ LoRA" not in words and "LLaMA" in words


def test_a_group_of_few_patients_is_not_shown(outcomes):
    text = page(*outcomes)
    assert "over 64</text>" in text and "not shown</text>" in text
    assert not re.search(r"over 64 \(\d", text)
    assert "45 to 64 (30)</text>" in text or "under 45 (25)</text>" in text


def test_nothing_of_a_patient_is_in_it(outcomes):
    text = page(*outcomes)
    assert not re.search(r"[0-9a-f]{16}", text)
    assert "label 0" not in text


def test_what_a_name_holds_is_not_taken_for_markup(outcomes):
    table, folder = outcomes
    rows = (dataclasses.replace(table.rows[0], title="<script>x()</script>"), *table.rows[1:])
    text = page(dataclasses.replace(table, rows=rows), folder)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_table_without_any_run(outcomes):
    table, folder = outcomes
    rows = tuple(dataclasses.replace(table.rows[1], name=row.name) for row in table.rows)
    text = page(dataclasses.replace(table, rows=rows, counts={}, pairs=()), folder)
    assert "0 of 7 rows were run" in text and "<svg" not in text


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_table_and_every_figure(browser, written, width):
    table, path = written
    shown = browser.open(path, width)
    assert shown.requests == [path.as_uri()]
    assert shown.complaints == []
    assert shown.value("document.documentElement.scrollWidth") <= width
    cards = shown.value("[...document.querySelectorAll('.cards tbody tr:has(td)')].map(row => row.innerText)")
    rows, pairs = cards[: len(table.rows)], cards[len(table.rows) :]
    for pair, text in zip(table.pairs, pairs, strict=True):
        delongs = sum(difference.delong is not None for difference in pair.differences)
        assert text.startswith(pair.title) and text.count("Holm") == len(pair.differences) + delongs
    for row, text in zip(table.rows, rows, strict=True):
        assert text.startswith(row.title.partition(" (the")[0]) and row.not_run in text
        assert text.count("agrees") == sum(cell.verdict == PASS for cell in row.every_cell)
        for cell in row.cells:
            decimals = 3 if cell.task == "test_ppl" else 2
            assert cell.low is None or f"{cell.value:.{decimals}f}" in text
    assert shown.value("document.querySelectorAll('svg').length") >= 2
    assert shown.value(_UNSEEN) == []
    assert shown.value(_OUTSIDE) == []
    assert shown.value(_OVERLAPS) == []


def test_a_screen_reader_hears_a_table_on_a_phone_too(browser, outcomes):
    table, folder = outcomes
    path = write(table, folder)
    phone, desk = (browser.open(path, width).roles() for width in (390, 1200))
    for role in ("table", "row", "rowheader", "columnheader", "cell", "image", "figure", "main"):
        assert phone.count(role) == desk.count(role) > 0, role


def test_the_browser_refuses_what_would_leave_the_page(browser, outcomes, tmp_path, monkeypatch):
    picture = '<img src="http://127.0.0.1:9/x.png">'
    monkeypatch.setattr(html, "_again", lambda table: picture)
    shown = browser.open(write(outcomes[0], _linked(outcomes[1], tmp_path)), 390)
    assert any("Content Security Policy" in complaint for complaint in shown.complaints)


def _linked(folder, target):
    for part in folder.iterdir():
        (target / part.name).symlink_to(part)
    (target / "table-3.html").unlink(missing_ok=True)
    return target


def test_light_and_dark(browser, written):
    colours = [
        browser.open(written[1], 390, dark).value("getComputedStyle(document.body).backgroundColor")
        for dark in (False, True)
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]
