"""Rows of CSV, JSON-lines and Parquet files, one at a time, with every cell as text.

Identifiers and codes stay strings ("0066" is a procedure, 66 is not), column names are matched whatever their case
(the MIMIC-III demo has lower-case headers, the full release upper-case ones), and no message ever quotes a cell.

CSV is read by DuckDB in its strict mode. Measured on 3.7 GB of generated notes on two cores, Polars takes 3.4 s, DuckDB
8, the standard library 25 (compressed: 4.5, 15 and 45), all within 450 MB; but Polars fills up a row that is cut short
and says of a broken one neither which it is nor why, where DuckDB refuses both and counts to the row.
"""

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from jaxlora.errors import UserError, nearest
from jaxlora.workers import cores

Cell = str | list[str] | None
Row = dict[str, Cell]
Keep = Mapping[str, Collection[str]]

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
_LONGEST_ROW = 4_000_000  # bytes; the longest note of MIMIC-III has 55,725 characters. DuckDB's buffers are 16 times it
_BATCH = 1024


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


def count(path: str | Path) -> int:
    """Returns the number of records of a CSV file, read once and not kept.

    Raises:
      UserError: as `rows`.
    """
    path = Path(path)
    _reader(path)
    header = _header(path)
    query, values = _scan(path, header, "count(*)")
    try:
        with _connection() as connection:
            return connection.execute(query, values).fetchone()[0]
    except duckdb.Error as error:
        raise _malformed(path, header, [0], str(error)) from None


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
    names = [header[i] for i in indices]
    numbered, values = _scan(path, header, f"row_number() over () AS number, {', '.join(f'c{i}' for i in indices)}")
    conditions = [f"c{indices[columns.index(column)]} IN (SELECT unnest(?::VARCHAR[]))" for column in keep]
    query = f"SELECT * FROM ({numbered}) WHERE {' AND '.join(['true', *conditions])}"
    try:
        with _connection() as connection:
            table = connection.sql(query, params=[*values, *(list(cells) for cells in keep.values())])
            for batch in table.to_arrow_reader(_BATCH):
                numbers, *cells = (column.to_pylist() for column in batch.columns)
                for number, *record in zip(numbers, *cells, strict=True):
                    if record[0] == names[0] and record == names:
                        raise UserError(f"{path}, row {number}: the header again; remove the line")
                    yield number, record
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # the last two are DuckDB's too, from a later batch
        raise _malformed(path, header, indices, str(error)) from None


def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        config={
            "threads": min(cores(), 4),
            "memory_limit": "1GB",
            "temp_directory": "",  # nothing of a table is ever spilled to the disk
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )


def _scan(path: Path, header: Sequence[str], selection: str) -> tuple[str, list[Any]]:
    """Returns the query of `selection` over a CSV file, its columns called c0, c1, ... as text, and its parameters."""
    exact = re.sub(r"([\[*?])", r"[\1]", str(path))  # DuckDB reads a pattern
    compression = "gzip" if path.name.lower().endswith(".gz") else "none"
    query = (
        f"SELECT {selection} FROM read_csv(?, columns=?, auto_detect=false, header=true, delim=',', quote='\"', "
        f"escape='\"', nullstr='', strict_mode=true, compression='{compression}', max_line_size={_LONGEST_ROW})"
    )
    return query, [exact, {f"c{i}": "VARCHAR" for i in range(len(header))}]


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
            raise _damaged(path) from None
    if header is None:
        raise _empty(path)
    return header


def _malformed(path: Path, header: Sequence[str], indices: Sequence[int], message: str) -> UserError:
    """Returns what DuckDB said of a file without what it quoted of it."""
    line = re.search(r"CSV Error on Line: (\d+)", message)
    if line is None:
        if "invalid state" in message:
            return UserError(f"{path}: no CSV with line ends of one kind, \\n or \\r\\n; save it again")
        return _damaged(path)
    at = f"{path}, row {int(line[1]) - 1}"
    cells = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if cells:
        found = f"{cells[2]} cells where the header has {cells[1]}"
        return UserError(f"{at}: {found}; quote cells that hold commas, quotes or line breaks")
    if "Invalid unicode" in message:
        column = next((header[i] for i in indices if not _decodes(path, header, i)), header[indices[0]])
        return UserError(f"{where(path, column, int(line[1]) - 1)}: not valid UTF-8; save the file in UTF-8")
    if "Maximum line size" in message:
        return UserError(f"{at}: longer than {_LONGEST_ROW / 1e6:.0f} MB; close its quote, or cut the row")
    return UserError(f"{at}: malformed CSV; quote the cell, double the quotes inside it, and close it")


def _decodes(path: Path, header: Sequence[str], index: int) -> bool:
    query, values = _scan(path, header, f"sum(length(c{index}))")
    try:
        with _connection() as connection:
            connection.execute(query, values).fetchall()
    except duckdb.Error:
        return False
    return True


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
            raise _damaged(path) from None


def _record(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_int=str, parse_float=str)
    except ValueError:
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
            for batch in file.iter_batches(batch_size=1024, columns=exact):
                cells = [batch.column(name).to_pylist() for name in exact]
                for record in zip(*cells, strict=True):
                    number += 1
                    yield from _kept(path, columns, number, record, keep)
    except (pa.ArrowException, OSError):
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


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: the file cannot be read to its end; it is damaged or cut short, copy it again")


def _index(path: Path, header: Sequence[str], column: str, columns: Sequence[str]) -> int:
    if column in header:
        return header.index(column)
    matches = [i for i, name in enumerate(header) if name.strip().casefold() == column.casefold()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{path}: {len(matches)} columns are named {column!r} in different case; rename all but one")
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
