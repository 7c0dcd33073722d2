"""What a reproduced table holds. Every writer (Markdown, LaTeX, JSON, HTML) sees this and nothing else.

Values are in the unit that the paper prints: an AUROC of 76.99, a perplexity of 2.244, a count of 8388608, seconds.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxlora import files

PASS, DIFFERS = "PASS", "differs by more than its interval"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: its `name` (a task such as "mor", or "trainable", "train_ppl", "test_ppl", "seconds"), its `title`,
    and its `unit`: "percent", "count", "perplexity" or "seconds"."""

    name: str
    title: str
    unit: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of ours beside the paper's.

    Attributes:
      task: the name of its column.
      value: the mean over the runs; None where nothing was run.
      low, high: the 95 % interval over the patients of the test split, of several runs the mean of their bounds; None
        where the figure has none (a count, a time, a perplexity of the training notes).
      runs: how many runs (seeds) the value is of.
      sd: standard deviation over the runs, which is no sampling error; None of one run.
      printed: what the paper prints; None where it prints nothing.
      verdict: PASS, DIFFERS, or "" where none can be given.
      folders: of the runs, relative to the table's folder; each has predictions-test.npz, log.jsonl and config.json.
    """

    task: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    sd: float | None = None
    printed: float | None = None
    verdict: str = ""
    folders: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What became of one adapter in one run.

    Attributes:
      run: the run's folder, relative to the table's. name: of the adapter.
      start, end: hashes of its parameters before the first update and in the evaluated checkpoint.
      trained: whether the row trains it. active: whether the row has it in the forward pass.
      effect: the largest change of a logit of the first test notes when 0.01 is added to each of its parameters; zero
        where it is not in the forward pass at all.
    """

    run: str
    name: str
    start: str
    end: str
    trained: bool
    active: bool
    effect: float

    @property
    def changed(self) -> bool:
        """Whether training changed it."""
        return self.start != self.end

    @property
    def as_it_should(self) -> bool:
        """Whether it changed just where the row trains it, and has an effect just where the row has it active."""
        return self.changed == self.trained and (self.effect > 0) == self.active


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One line.

    Attributes:
      name: as `--rows` takes it. title: as it is printed. base: the group it stands in, such as "LLaMA".
      cells: one for every column of the table, in that order.
      average: mean of our cells; None unless every task has one.
      printed_average: as the paper prints it. true_average: the mean of the cells that the paper prints.
      as_published: whether its downstream adapter is left out of the forward pass, as the published code did.
      not_run: why there is no run, and the remedy; "" where there is.
      adapters: what became of the adapters of its runs.
    """

    name: str
    title: str
    base: str
    cells: tuple[Cell, ...]
    average: float | None = None
    printed_average: float | None = None
    true_average: float | None = None
    as_published: bool = False
    not_run: str = ""
    adapters: tuple[Adapter, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper, reproduced.

    Attributes:
      number: 2, 3 or 4. title: what it shows. metric: what its cells are, in words.
      scale: "full" or "demo". seeds: of its runs. command: that makes it again.
      columns, rows: see there.
      no_verdict: why no cell has a verdict; "" where cells have one.
      counts: notes of each dataset by split, {"mimic3_admission/mor": {"train": 420, ...}}.
      remarks: sentences that belong under the table.
    """

    number: int
    title: str
    metric: str
    scale: str
    seeds: tuple[int, ...]
    command: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    no_verdict: str = ""
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON data, the verdict of each adapter spelled out."""
        data = dataclasses.asdict(self)
        for row, given in zip(data["rows"], self.rows, strict=True):
            for adapter, of in zip(row["adapters"], given.adapters, strict=True):
                adapter |= {"changed": of.changed, "as_it_should": of.as_it_should}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Table":
        """Returns the table that `to_json` was given."""
        rows = []
        for row in data["rows"]:
            cells = tuple(Cell(**{**cell, "folders": tuple(cell["folders"])}) for cell in row["cells"])
            fields = [field.name for field in dataclasses.fields(Adapter)]
            adapters = tuple(Adapter(**{name: adapter[name] for name in fields}) for adapter in row["adapters"])
            rows.append(TableRow(**{**row, "cells": cells, "adapters": adapters}))
        columns = tuple(Column(**column) for column in data["columns"])
        tuples = {name: tuple(data[name]) for name in ("seeds", "remarks")}
        return cls(**{**data, **tuples, "columns": columns, "rows": tuple(rows)})

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, atomically."""
        files.write_json(path, self.to_json())


def load(path: str | Path) -> Table:
    """Reads what `Table.save` wrote."""
    return Table.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
