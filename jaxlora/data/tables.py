"""Rows of CSV, JSON-lines and Parquet files, one at a time, with every cell as text.

Identifiers and codes stay strings ("0066" is a procedure, 66 is not), column names are matched whatever their case
(the MIMIC-III demo has lower-case headers, the full release upper-case ones), and no message ever quotes a cell.

CSV is read by Arrow, and from where Arrow gives up by the standard library, which is four times slower, and knows what
is wrong and in which row. DuckDB and Polars were tried (docs/data.md has the figures): DuckDB begins in the middle of a
file and guesses where a row begins, so that notes whose lines look like rows come out wrong or not at all; Polars takes
a row that is cut short for a whole one.
"""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from jaxlora.errors import UserError, nearest

Cell = str | list[str] | None
Row = dict[str, Cell]
Keep = Mapping[str, Collection[str]]

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
_LONGEST_CELL = 64 * 2**20  # a quote that never closes would otherwise swallow the rest of the file into memory
_ROWS = 1024
_BLOCK = 2**23  # bytes; a longer row is left to the standard library


def rows(path: str | Path, columns: Iterable[str], keep: Keep | None = None) -> Iterator[tuple[int, Row]]:
    """Yields the records of a table as `(row number, {column: cell})`, in the order of the file.

    Args:
      path: a `.csv`, `.csv.gz`, `.jsonl`, `.jsonl.gz` or `.parquet` file.
      columns: the columns to read, in any case; the dictionary has the names as given here.
      keep: for some of these columns the cells that a record may have there; other records are passed over.

    Yields:
      The number of the record, from 1 and without the header, and its cells: text, a list of texts, or None when empty.

    Raises:
      UserError: the file is missing, empty, malformed or of another type, or lacks a column.
    """
    path, columns = Path(path), tuple(dict.fromkeys(columns))
    number = 0
    for number, cells in _reader(path)(path, columns, keep or {}):
        yield number, dict(zip(columns, cells, strict=True))
    if not number and not keep:
        raise UserError(f"{path}: the table has no rows; give a file with at least one row below its header")


def columns(path: str | Path) -> list[str]:
    """Returns the names of the columns of a CSV file, as its first row has them.

    Raises:
      UserError: the file is missing, empty or damaged.
    """
    path = Path(path)
    _reader(path)
    return [name.strip() for name in _header(path)]


def count(path: str | Path) -> int:
    """Returns the number of records of a CSV file, read once and not kept.

    Raises:
      UserError: as `rows`.
    """
    path = Path(path)
    _reader(path)
    header = _header(path)
    return sum(len(numbers) for numbers, _ in _blocks(path, header, [0], {}))


def where(path: str | Path, column: str, number: int) -> str:
    """Returns how messages name a cell: by file, column and row number, never by its content."""
    return f"{path}, column {column!r}, row {number}"


def _reader(path: Path):
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise UserError(f"{path}: unknown type of table; use one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        present = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, present, n=1)  # and no other: the names of notes may identify
        raise UserError(f"{path}: no such file{f'; did you mean {close[0]!r}?' if close else ''}")
    if path.stat().st_size == 0:
        raise _empty(path)
    return {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}[suffix.removesuffix(".gz")]


def _csv(path: Path, columns: Sequence[str], keep: Keep) -> Iterator[tuple[int, list[Cell]]]:
    header = _header(path)
    indices = [_index(path, header, column, columns) for column in columns]
    names = _folded(header[i] for i in indices)
    for numbers, cells in _blocks(path, header, indices, {columns.index(name): keep[name] for name in keep}):
        for number, *record in zip(numbers, *cells, strict=True):
            if record[0] and record[0].strip().casefold() == names[0] and _folded(record) == names:
                raise UserError(f"{path}, row {number}: the header again; remove the line")
            yield number, record


def _blocks(path: Path, header: Sequence[str], indices: Sequence[int], keep: Mapping[int, Collection[str]]):
    """Yields (row numbers, a list of cells for each of some columns) of a CSV file, block by block.

    Args:
      indices: of the columns in the header. keep: by place in `indices`, the cells that a row may have there.
    """
    done = 0
    try:
        for first, batch in _arrow_blocks(path, header, indices):
            yield _block(first, batch, keep)
            done = first + len(batch) - 1
        return
    except (pa.ArrowException, OSError):
        pass  # the standard library takes the rows from here on, and says what is the matter
    block: list[tuple] = []
    for number, record in _plain_csv(path, header):
        if number > done:
            cells = [_cell(record[i], path, header[i], number) for i in indices]
            if all(cells[place] in allowed for place, allowed in keep.items()):
                block.append((number, *cells))
        if len(block) == _ROWS:
            yield _columns(block)
            block = []
    if block:
        yield _columns(block)


def _columns(block: list[tuple]) -> tuple[Sequence[int], list[Sequence[Cell]]]:
    numbers, *cells = zip(*block, strict=True)
    return numbers, cells


def _block(first: int, batch: pa.RecordBatch, keep: Mapping[int, Collection[str]]):
    numbers = pa.array(range(first, first + len(batch)))
    for place, allowed in keep.items():
        mask = pc.is_in(batch.column(place), pa.array(list(allowed), pa.string()))
        batch, numbers = batch.filter(mask), numbers.filter(mask)
    return numbers.to_pylist(), [column.to_pylist() for column in batch.columns]


def _arrow_blocks(path: Path, header: Sequence[str], indices: Sequence[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields (number of the first row, batch of text columns); raises ArrowInvalid or OSError for what it cannot read.

    Arrow takes a quote that never closes for a cell to the end of the file: the quotes of the file are counted, and
    the last batch, which would have that cell, is given when their number is even.
    """
    names = [f"c{i}" for i in range(len(header))]
    with _Quotes(path) as file:
        reader = arrow_csv.open_csv(
            pa.PythonFile(file, "r"),
            arrow_csv.ReadOptions(block_size=_BLOCK, column_names=names, use_threads=False),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=[names[i] for i in indices],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        first, last = 0, None  # row 0 is the header
        for batch in reader:
            if last:
                yield last
            last = first, batch
            if first == 0:
                last = 1, batch.slice(1)
            first += len(batch)
        if file.count % 2:
            raise pa.ArrowInvalid("a quote that never closes")
        if last:
            yield last


class _Quotes:
    """A file as `pa.PythonFile` reads it, decompressed, that counts its quotes."""

    def __init__(self, path: Path):
        compression = "gzip" if path.name.lower().endswith(".gz") else None
        self.count, self.closed = 0, False
        self._file = pa.input_stream(str(path), compression=compression)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.count += data.count(b'"')
        return data

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def __enter__(self) -> "_Quotes":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _folded(cells: Iterable[Cell]) -> list[str]:
    return [(cell or "").strip().casefold() for cell in cells]


def _plain_csv(path: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (row number, cells) by the standard library, which has no block a long note could overflow, and knows the
    row that it refuses."""
    csv.field_size_limit(_LONGEST_CELL)
    number = 0
    with _open(path) as file:
        # Bytes that are not UTF-8 become lone surrogates, which `_cell` finds with the row at hand.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            reader = csv.reader(text, strict=True)
            next(reader)
            for record in reader:
                if not record:
                    continue
                number += 1
                if len(record) != len(header):
                    raise UserError(
                        f"{path}, row {number}: {len(record)} cells where the header has {len(header)}; "
                        "quote cells that hold commas, quotes or line breaks"
                    )
                yield number, record
        except csv.Error:
            raise UserError(
                f"{path}, row {number + 1}: malformed CSV; quote the cell, double the quotes inside it, and close it"
            ) from None
        except (EOFError, OSError, zlib.error):
            raise _damaged(path, number) from None


def _header(path: Path) -> list[str]:
    """Returns the first record of a CSV file: the engine is told the columns, and so need not guess at them."""
    with _open(path) as file:
        # Without errors="strict": a first row that is no header may be anything, and is refused for that.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        try:
            header = next(csv.reader(text), None)
        except csv.Error:
            raise UserError(f"{path}: its first row is no header; write the names of the columns there") from None
        except (EOFError, OSError, zlib.error):
            raise _damaged(path, 0) from None
    if header is None:
        raise _empty(path)
    return header


def _json_lines(path: Path, columns: Sequence[str], keep: Keep) -> Iterator[tuple[int, list[Cell]]]:
    number = 0
    with _open(path) as file:
        try:
            for line in file:
                if not line.strip():
                    continue
                number += 1
                record = _record(path, line, number)
                if number == 1:
                    exact = [list(record)[_index(path, list(record), column, columns)] for column in columns]
                cells = [record.get(name) for name in exact]
                yield from _kept(path, columns, number, cells, keep)
        except (EOFError, OSError, zlib.error):
            raise _damaged(path, number) from None


def _record(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        raise UserError(f"{path}, row {number}: malformed JSON; write one object a line, in UTF-8") from None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, row {number}: not a JSON object; write one object a line, with the column names as keys"
        )
    return record


def _parquet(path: Path, columns: Sequence[str], keep: Keep) -> Iterator[tuple[int, list[Cell]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            header = file.schema_arrow.names
            exact = [header[_index(path, header, column, columns)] for column in columns]
            for batch in file.iter_batches(batch_size=_ROWS, columns=exact):
                cells = [batch.column(name).to_pylist() for name in exact]
                for record in zip(*cells, strict=True):
                    number += 1
                    yield from _kept(path, columns, number, record, keep)
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError):
        raise UserError(f"{path}: malformed Parquet after row {number}; write or copy the file again") from None


def _kept(path: Path, columns: Sequence[str], number: int, record: Sequence[Any], keep: Keep):
    cells = [_cell(value, path, name, number) for name, value in zip(columns, record, strict=True)]
    if all(cells[columns.index(name)] in allowed for name, allowed in keep.items()):
        yield number, cells


def _open(path: Path) -> BinaryIO:
    try:
        return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
    except PermissionError:
        raise UserError(f"{path}: you may not read this file; ask its owner, or change its permissions") from None


def _empty(path: Path) -> UserError:
    return UserError(f"{path}: the file is empty (0 bytes); write or copy it again")


def _damaged(path: Path, number: int) -> UserError:
    return UserError(f"{path}: the file cannot be read after row {number}; it is damaged or cut short, copy it again")


def _index(path: Path, header: Sequence[str], column: str, columns: Sequence[str]) -> int:
    matches = [i for i, name in enumerate(header) if name.strip().casefold() == column.casefold()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"{path}: {len(matches)} columns are named {column!r}, in this case or another; rename all but one"
        )
    # Without a header the first row is data, which no message may show. One with another wanted name is a header.
    names = [name.strip().casefold() for name in header]
    if not any(other.casefold() in names for other in columns):
        raise UserError(
            f"{path}: none of the columns {', '.join(columns)} is in its first row; name them, or add a header"
        )
    hint = nearest(column, header)
    present = "" if hint.startswith("; valid") else f" (columns: {', '.join(header)})"
    raise UserError(f"{path}: no column {column!r}{hint}{present}")


def _cell(value: Any, path: Path, column: str, number: int) -> Cell:
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple, dict)) for item in value):
            raise UserError(f"{where(path, column, number)}: a list of lists; store text, or a list of texts")
        texts = [_cell(item, path, column, number) for item in value]
        return [text for text in texts if isinstance(text, str)] or None
    if value is None or value == "" or value != value:  # NaN is what pandas leaves where there is nothing
        return None
    if isinstance(value, bytes | dict):
        raise UserError(f"{where(path, column, number)}: neither text nor a list of texts; store it as text")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where(path, column, number)}: not valid UTF-8; save the file in UTF-8")
    return text
