"""Markdown and LaTeX of a reproduced table."""

import dataclasses
import re

from jaxlora.reproduce import latex, markdown
from jaxlora.reproduce.cells import chance, told
from tests.reproduce.test_results import TABLE


def test_markdown_has_ours_the_papers_and_the_verdict_beside_each_other():
    text = markdown.write(TABLE)
    assert "76.20 ± 0.70 (74.00–78.50) [77.00] ✓ |" in text and "(59.00–61.00) [66.30] ≠ |" in text
    assert "68.10 ± 0.40 (67.00–69.20) [58.61 = 59.94] ≠ |" in text and "mean, which ours is compared with" in text
    assert "CORe & co_ (not run: give it) | – [71.52] | – |" in text
    rows = [line for line in text.partition("## Rows compared")[0].splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert "clinical" not in re.search("training changed (.*?);", text)[1]
    assert "without any effect on the logits: downstream" in text and "NOT AS IT SHOULD BE in 1 runs" in text
    assert "1,200 train, 300 test" in text and "seeds 0, 1" in text


def test_a_difference_has_its_interval_and_every_p():
    for text in (markdown.write(TABLE), latex.write(TABLE).replace("$<$", "<").replace("$-$", "−")):
        assert "Holm's correction for the 2 differences of this table, * where that is below 0.05" in text
        assert (
            "DeLong's p of the first seed takes" in text
            and "for the 1 of its kind" in text
            and "frozen − head only" in text
        )
        assert "+1.20" in text and "(−0.30 to 2.70)".replace("2", "+2") in text
    text = markdown.write(TABLE).partition("## Rows compared")[2]
    assert "+1.20 (−0.30 to +2.70) p = 0.120, Holm = 0.240, DeLong < 0.001, Holm = 0.004 | −2.00* (" in text
    assert "| rows | MOR (mortality) | average |" in text
    assert "Rows compared" not in markdown.write(dataclasses.replace(TABLE, pairs=()))


def test_a_table_without_verdicts_says_why():
    table = dataclasses.replace(TABLE, no_verdict="it is small")
    assert "It is small" in markdown.write(table) and "it is small" in latex.write(table)


def test_latex_escapes_closes_what_it_opens_and_fills_every_line():
    text = latex.write(TABLE)
    assert r"CORe \& co\_ &" in text and r"100 \% of it." in text and "not run: give it" in text
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ["table", "tabular"] * 2 and ended == ["tabular", "table"] * 2
    for body, columns in zip(text.split(r"\toprule")[1:], (4, 3), strict=True):
        for line in body.partition(r"\bottomrule")[0].strip().splitlines():
            whole = line == r"\midrule" or line.startswith(f"\\multicolumn{{{columns}}}")
            assert whole or len(re.findall(r"(?<!\\)&", line)) == columns - 1


def test_figures_are_told_as_the_paper_prints_them():
    assert told(8_388_608, "count") == "8,388,608" and told(77_862, "seconds") == "21:37:42"
    assert told(72.806, "percent", brief=True) == "72.8" and chance(0.0312) == "= 0.031" and chance(1e-9) == "< 0.001"
    assert told(2.2444, "perplexity") == "2.244" and told(72.806, "percent") == "72.81"
