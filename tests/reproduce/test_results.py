"""A reproduced table and its JSON."""

import dataclasses
import json

from jaxlora.reproduce.results import (
    AVERAGE,
    DIFFERS,
    PASS,
    Adapter,
    Cell,
    Column,
    Difference,
    Pair,
    Table,
    TableRow,
)

KEPT = Adapter("runs/a", "clinical", "12", "12", trained=False, active=True, effect=0.5)
INERT = Adapter("runs/a", "downstream", "34", "34", trained=True, active=True, effect=0.0)
CELLS = (
    Cell("mor", 76.2, 74.0, 78.5, 2, 0.7, 77.0, None, PASS, ("runs/a", "runs/b")),
    Cell("los", 60.0, 59.0, 61.0, 2, 0.1, 66.3, None, DIFFERS, ("runs/c",)),
)
MEAN = Cell("average", 68.1, 67.0, 69.2, 2, 0.4, 58.61, 59.94, DIFFERS)
PAIR = Pair(
    "frozen",
    "head_only",
    "frozen − head only",
    "LLaMA",
    (
        Difference("mor", 1.2, -0.3, 2.7, 0.12, 0.24, 0.0004, 0.004),
        Difference("average", -2.0, -3.0, -1.0, 0.0001, 0.0002),
    ),
)
TABLE = Table(
    number=3,
    title="Table 3: a title",
    metric="AUROC in %",
    scale="full",
    seeds=(0, 1),
    command="jaxlora reproduce --table=3",
    columns=(Column("mor", "MOR (mortality)", "percent"), Column("los", "LOS", "percent")),
    rows=(
        TableRow("frozen", "+ Clinical (Frozen)", "LLaMA", CELLS, MEAN, adapters=(KEPT, INERT)),
        TableRow(
            "core", "CORe & co_", "CORe", (Cell("mor", printed=71.52), Cell("los")), Cell("average"), not_run="give it"
        ),
    ),
    pairs=(PAIR,),
    counts={"mimic3_admission/mor": {"train": 1200, "test": 300}},
    remarks=("100 % of it.",),
)


def test_the_file_has_the_table_and_what_follows_from_it(tmp_path):
    TABLE.save(tmp_path / "table.json")
    found = json.loads((tmp_path / "table.json").read_text())
    frozen, core = found["rows"]
    assert [(a["changed"], a["as_it_should"]) for a in frozen["adapters"]] == [(False, True), (False, False)]
    assert (frozen["average"]["printed"], frozen["average"]["corrected"]) == (58.61, 59.94)
    assert core["cells"][0]["value"] is None and found["columns"][1]["unit"] == "percent"
    assert found["compared"] == 2 and found["pairs"][0]["differences"][1]["holm"] == 0.0002


def test_columns_of_averages_and_of_differences():
    assert TABLE.every_column == (*TABLE.columns, AVERAGE)
    assert [len(row.every_cell) for row in TABLE.rows] == [3, 3]
    assert [column.name for column in TABLE.pair_columns] == ["mor", "average"]
    assert PAIR.of(TABLE.columns[1]) is None and PAIR.of(AVERAGE).value == -2
    part = dataclasses.replace(TABLE, rows=(dataclasses.replace(TABLE.rows[0], average=None),))
    assert part.every_column == TABLE.columns


def test_an_adapter_is_as_it_should_be_where_both_halves_are():
    assert KEPT.as_it_should and not INERT.as_it_should
    assert not dataclasses.replace(KEPT, end="13").as_it_should
    assert dataclasses.replace(INERT, end="35", effect=0.1).as_it_should
    assert dataclasses.replace(INERT, trained=False, active=False).as_it_should
