"""What a reproduced table holds. Every writer (Markdown, LaTeX, JSON, HTML) sees this and nothing else.

Values are in the unit that the paper prints: an AUROC of 76.99, a perplexity of 2.244, a count of 8388608, seconds.
"""

import dataclasses
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


AVERAGE = Column("average", "average", "percent")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of ours beside the paper's.

    Attributes:
      task: the name of its column.
      value: the mean over the runs; None where nothing was run.
      low, high: the 95 % interval over the patients of the test split, of several runs that of their mean; None where
        the figure has none (a count, a time, a perplexity of the training notes).
      runs: how many runs (seeds) the value is of.
      sd: standard deviation over the runs, which is no sampling error; None of one run, and of a count.
      printed: what the paper prints; None where it prints nothing.
      corrected: what it should print, of an average that is not the mean of the printed cells; None of others.
      verdict: PASS, DIFFERS, or "" where none can be given; of an average about the mean of the printed cells.
      folders: of the runs, relative to the table's folder; each has predictions-test.npz, log.jsonl and config.json.
    """

    task: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    sd: float | None = None
    printed: float | None = None
    corrected: float | None = None
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
      average: of our cells, over patients drawn for all tasks at once; None where the table has not all tasks.
      as_published: whether its downstream adapter is left out of the forward pass, as the published code did.
      not_run: why there is no run, and the remedy; "" where there is.
      adapters: what became of the adapters of its runs.
    """

    name: str
    title: str
    base: str
    cells: tuple[Cell, ...]
    average: Cell | None = None
    as_published: bool = False
    not_run: str = ""
    adapters: tuple[Adapter, ...] = ()

    @property
    def every_cell(self) -> tuple[Cell, ...]:
        """The cells and, of a table with averages, the average: one for each of `Table.every_column`."""
        return (*self.cells, self.average) if self.average else self.cells


@dataclasses.dataclass(frozen=True)
class Difference:
    """One row less another in one column, the mean over the seeds of each.

    Attributes:
      task: the name of the column, or "average".
      value, low, high: the difference in points with its 95 % interval over the same draws of the patients; of a
        perplexity the one over the other.
      p: of no difference. holm: after Holm's correction for all differences of the table.
      delong: p by DeLong's test on the first seed of each, of a binary task. delong_holm: after Holm's correction for
        all such tests of the table.
    """

    task: str
    value: float
    low: float
    high: float
    p: float
    holm: float | None = None
    delong: float | None = None
    delong_holm: float | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two rows that the paper argues with.

    Attributes:
      one, other: names of the rows, the other's perhaps of another table. title: of the pair. base: the group of `one`.
      differences: those that can be told, in the order of the columns.
    """

    one: str
    other: str
    title: str
    base: str
    differences: tuple[Difference, ...] = ()

    def of(self, column: Column) -> Difference | None:
        """Returns the difference in a column; None where it has none."""
        return next((of for of in self.differences if of.task == column.name), None)


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper, reproduced.

    Attributes:
      number: 2, 3 or 4. title: what it shows. metric: what its cells are, in words.
      scale: "full" or "demo". seeds: of its runs. command: that makes it again.
      columns, rows: see there.
      no_verdict: why no cell has a verdict; "" where cells have one.
      pairs: rows that are compared.
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
    pairs: tuple[Pair, ...] = ()
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def every_column(self) -> tuple[Column, ...]:
        """The columns, with the average where the table has averages."""
        return (*self.columns, AVERAGE) if any(row.average for row in self.rows) else self.columns

    @property
    def pair_columns(self) -> tuple[Column, ...]:
        """The columns in which rows are compared."""
        return tuple(column for column in self.every_column if any(pair.of(column) for pair in self.pairs))

    @property
    def compared(self) -> int:
        """How many differences there are, the family that Holm's correction is for."""
        return sum(len(pair.differences) for pair in self.pairs)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON data, with what follows from it: the verdict of each adapter, how many differences."""
        data = dataclasses.asdict(self) | {"compared": self.compared}
        for row, given in zip(data["rows"], self.rows, strict=True):
            for adapter, of in zip(row["adapters"], given.adapters, strict=True):
                adapter |= {"changed": of.changed, "as_it_should": of.as_it_should}
        return data

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, atomically."""
        files.write_json(path, self.to_json())
