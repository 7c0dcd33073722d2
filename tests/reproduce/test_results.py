"""A reproduced table goes to a file and comes back."""

import dataclasses
import json

from jaxlora.reproduce.results import DIFFERS, PASS, Adapter, Cell, Column, Table, TableRow, load

KEPT = Adapter("runs/a", "clinical", "12", "12", trained=False, active=True, effect=0.5)
INERT = Adapter("runs/a", "downstream", "34", "34", trained=True, active=True, effect=0.0)
CELLS = (
    Cell("mor", 76.2, 74.0, 78.5, 2, 0.7, 77.0, PASS, ("runs/a", "runs/b")),
    Cell("los", 60.0, 59.0, 61.0, 2, 0.1, 66.3, DIFFERS, ("runs/c",)),
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
        TableRow("frozen", "+ Clinical (Frozen)", "LLaMA", CELLS, 68.1, 58.61, 59.94, adapters=(KEPT, INERT)),
        TableRow("core", "CORe & co_", "CORe", (Cell("mor", printed=71.52), Cell("los")), not_run="give it"),
    ),
    counts={"mimic3_admission/mor": {"train": 1200, "test": 300}},
    remarks=("100 % of it.",),
)


def test_a_table_comes_back_from_its_file(tmp_path):
    TABLE.save(tmp_path / "table.json")
    assert load(tmp_path / "table.json") == TABLE
    found = json.loads((tmp_path / "table.json").read_text())["rows"][0]["adapters"]
    assert [(a["changed"], a["as_it_should"]) for a in found] == [(False, True), (False, False)]


def test_an_adapter_is_as_it_should_be_where_both_halves_are():
    assert KEPT.as_it_should and not INERT.as_it_should
    assert not dataclasses.replace(KEPT, end="13").as_it_should
    assert dataclasses.replace(INERT, end="35", effect=0.1).as_it_should
    assert dataclasses.replace(INERT, trained=False, active=False).as_it_should
