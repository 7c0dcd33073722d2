"""Categories of codes in both modes, and the mapping from ICD-10 to ICD-9."""

import pytest

from jaxlora.data import icd
from jaxlora.errors import UserError


@pytest.mark.parametrize(
    ("code", "correct", "paper"),
    [
        ("4019", "401", "401"),
        ("486", "486", "486"),
        ("0389", "038", "038"),
        ("V4581", "V45", "V458"),
        ("V08", "V08", "V08"),
        ("E8889", "E888", "E888"),
    ],
)
def test_diagnoses(code, correct, paper):
    assert (icd.diagnosis9(code, "correct"), icd.diagnosis9(code, "paper")) == (correct, paper)


@pytest.mark.parametrize(
    ("code", "correct", "paper"),
    [
        ("3891", "389", "389"),
        ("0066", "006", "66"),
        ("0331", "033", "331"),
        ("3310", "331", "331"),
        ("34", "34", "34"),
        ("000", "000", "0"),
    ],
)
def test_procedures(code, correct, paper):
    assert (icd.procedure9(code, "correct"), icd.procedure9(code, "paper")) == (correct, paper)


def test_gem(tmp_path):
    path = tmp_path / "gem.txt"
    path.write_text(
        "I10     4019    10000\n"
        "I10     4010    10000\n"  # another choice
        "T0500   NoDx    11000\n\n"
        "E1151   25070   10111\n"  # a combination of two codes
        "E1151   25071   10111\n"
        "E1151   44381   10112\n"
        "E1151   25080   10121\n"  # another scenario
        "S0300   8300    10000\n"  # one code alone, and then a combination
        "S0300   8301    10111\n"
        "S0300   8302    10112\n"
    )
    gem = icd.Gem(path)
    assert gem["I10"] == ("4019",)
    assert gem["E1151"] == ("25070", "44381")
    assert gem["S0300"] == ("8300",)
    assert "T0500" in gem and "unknown" not in gem
    assert gem["T0500"] == gem["unknown"] == ()


@pytest.mark.parametrize("line", ["I10,4019,10000", "I10 4019", "I10 4019 1000", "I10 4019 1000x"])
def test_what_is_no_gem(tmp_path, line):
    path = tmp_path / "gem.txt"
    path.write_text(f"A000 0010 00000\n{line}\n")
    with pytest.raises(UserError, match="gem.txt, row 2: not an ICD-10 code, an ICD-9 code and five digits") as caught:
        icd.Gem(path)
    assert "I10" not in str(caught.value).replace(str(path), "")
    with pytest.raises(UserError, match="no such file; set gem to the GEM"):
        icd.Gem(tmp_path / "absent.txt")


def test_a_code_of_any_length():
    assert icd.procedure9("0" * 9 + "1" * 5000, "paper") == "111"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "gem.txt: the file is empty; set gem to the GEM from ICD-10 to ICD-9"),
        ("\n \n", "gem.txt: the file is empty"),
        ("0010 A000 00000\n", "gem.txt, row 1: maps to no ICD-9 code; set gem to the GEM from ICD-10 to ICD-9"),
        ("0050 0016070 10000\n", "gem.txt, row 1: maps to no ICD-9 code"),
    ],
)
def test_a_mapping_of_nothing_or_the_other_way(tmp_path, text, message):
    (tmp_path / "gem.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        icd.Gem(tmp_path / "gem.txt")
