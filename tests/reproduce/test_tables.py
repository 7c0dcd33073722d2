"""The figures that the paper prints, and what follows from them."""

import pytest

from jaxlora.reproduce.runs import clinical_line
from jaxlora.reproduce.tables import BASES, TABLES, TASKS
from jaxlora.rows import ROWS


def test_three_printed_averages_are_not_the_means_of_their_rows():
    wrong = {}
    for paper in (TABLES[3], TABLES[4]):
        for line in paper.rows:
            if line.average is not None and abs(line.average - line.true_average) > 0.0051:
                wrong[line.name] = (line.average, round(line.true_average, 2))
    assert wrong == {
        "head_only": (58.61, 59.94),
        "pmc_frozen": (60.06, 61.70),
        "bluebert_lora": (71.56, 71.38),
    }


@pytest.mark.parametrize("number", TABLES)
def test_every_line_has_a_name_of_its_own_a_base_and_a_row(number):
    paper = TABLES[number]
    names = [line.name for line in paper.rows]
    assert len(set(names)) == len(names)
    for line in paper.rows:
        assert line.base in BASES and (line.row in ROWS or line.row in ("tfidf", "clinical"))
        assert not line.printed or list(line.printed) == [column.name for column in paper.columns]
        assert all(set(cell) <= set("0123456789.") for cell in map(str, line.printed.values()))


def test_as_published_rows_have_the_printed_figures_of_the_rows_as_described():
    named = {line.name: line for line in TABLES[3].rows}
    published = [line for line in named.values() if line.as_published]
    assert len(published) == 4
    for line in published:
        assert line.printed == named[line.name.removesuffix("_as_published")].printed
        assert "downstream" not in ROWS[line.row].active


def test_counts_of_the_techniques_follow_from_their_sizes():
    width, layers = 4096, 32
    found = {line.name: (line.printed["trainable"], line.sizes) for line in TABLES[2].rows}
    for prefix in ("", "pmc_"):
        count, sizes = found[f"{prefix}lora"]
        assert count == layers * 2 * sizes["rank"] * 2 * width
        count, sizes = found[f"{prefix}prefix"]
        assert count == sizes["virtual_tokens"] * 2 * layers * width
        count, sizes = found[f"{prefix}prompt"]
        assert count == sizes["virtual_tokens"] * width
        count, sizes = found[f"{prefix}adaptation_prompt"]
        assert count == sizes["layers"] * (sizes["length"] * width + 1)
    count, sizes = found["pmc_p_tuning"]
    hidden = sizes["hidden"]
    assert count == sizes["virtual_tokens"] * width + 2 * width * hidden + hidden**2 + 2 * hidden + width


def test_the_clinical_adapter_of_table_3_is_the_lora_of_table_2():
    assert clinical_line("llama").sizes == {"rank": 16, "alpha": 32}
    assert clinical_line("pmc_llama").sizes == {"rank": 4, "alpha": 4, "dropout": 0.2}
    assert tuple(TASKS) == ("pmv", "mor", "los", "diag", "proc")
