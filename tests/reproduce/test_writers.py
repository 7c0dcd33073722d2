"""Markdown and LaTeX of a reproduced table."""

import dataclasses
import re

from jaxlora.reproduce import latex, markdown
from jaxlora.reproduce.markdown import told
from tests.reproduce.test_results import TABLE


def test_markdown_has_ours_the_papers_and_the_verdict_beside_each_other():
    text = markdown.write(TABLE)
    assert "76.20 ± 0.70 (74.00–78.50) [77.00] ✓ |" in text and "(59.00–61.00) [66.30] ≠ |" in text
    assert "68.10 [58.61 = 59.94] |" in text and "CORe & co_ (not run: give it) | – [71.52] | – |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert "clinical" not in re.search("training changed (.*?);", text)[1]
    assert "without any effect on the logits: downstream" in text and "NOT AS IT SHOULD BE in 1 runs" in text
    assert "1,200 train, 300 test" in text and "seeds 0, 1" in text


def test_a_table_without_verdicts_says_why():
    table = dataclasses.replace(TABLE, no_verdict="it is small")
    assert "it is small" in markdown.write(table) and "it is small" in latex.write(table)


def test_latex_escapes_closes_what_it_opens_and_fills_every_line():
    text = latex.write(TABLE)
    assert r"CORe \& co\_ &" in text and r"100 \% of it." in text and "not run: give it" in text
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1] == ["table", "tabular"]
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    for line in body.strip().splitlines():
        assert line in (r"\midrule",) or line.startswith(r"\multicolumn{4}") or len(re.findall(r"(?<!\\)&", line)) == 3


def test_figures_are_told_as_the_paper_prints_them():
    assert told(8_388_608, "count") == "8,388,608" and told(77_862, "seconds") == "21:37:42"
    assert told(2.2444, "perplexity") == "2.244" and told(72.806, "percent") == "72.81"
