"""docs/paper.md prints what the tables hold, and its means are those of its rows."""

import re
from pathlib import Path

import pytest

from jaxlora.reproduce.tables import BASES, TABLES

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()


def rows_of(number):
    """The cells of the lines of a table of figures, by what they print."""
    section = re.search(rf"^## Table {number}:.*?(?=^## )", PAGE, re.M | re.S)[0]
    lines = [line.strip("| ").split("|") for line in section.splitlines() if re.search(r"\d\.\d\d+ ?\|", line)]
    return [[cell.strip(" *") for cell in line] for line in lines]


@pytest.mark.parametrize("number", [3, 4])
def test_the_printed_figures_and_their_means(number):
    expected = [
        (*line.printed.values(), line.average) for line in TABLES[number].rows if line.printed and not line.as_published
    ]
    found = rows_of(number)
    assert [tuple(float(cell) for cell in row[1:7]) for row in found] == expected
    for row in found:
        mean = sum(map(float, row[1:6])) / 5
        wrong = abs(mean - float(row[6])) > 0.0051
        assert row[7:] == ([f"{mean:.2f}"] if wrong else [""] if len(row) > 7 else []), row


def test_the_techniques():
    found = rows_of(2)
    lines = [line for line in TABLES[2].rows if line.printed]
    assert len(found) == len(lines)
    for row, line in zip(found, lines, strict=True):
        assert row[:2] == [BASES[line.base].title, line.title]
        hours, minutes, seconds = map(int, row[6].split(":"))
        values = [int(row[3].replace(",", "")), float(row[4]), float(row[5]), 3600 * hours + 60 * minutes + seconds]
        assert values == list(line.printed.values())


def test_every_row_that_it_names_can_be_run():
    named = set(re.findall(r"`([a-z_]+)`", PAGE[PAGE.index("Row by row") : PAGE.index("## Table 4")]))
    assert named <= {line.name for line in TABLES[3].rows}
