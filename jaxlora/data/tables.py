"""Rows of CSV, JSON-lines and Parquet files, one at a time, with every cell as text.

Identifiers and codes stay strings ("0066" is a procedure, 66 is not), column names are matched whatever their case
(the MIMIC-III demo has lower-case headers, the full release upper-case ones), and no message ever quotes a cell.
CSV is read by the standard library rather than pyarrow: it has no block a long note could overflow, it refuses a
quote that never closes, and it can tell the row.
"""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from jaxlora.errors import UserError, nearest

Cell = str | list[str] | None
Row = dict[str, Cell]

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
_LONGEST_CELL = 64 * 2**20  # a quote that never closes would otherwise swallow the rest of the file into memory


def rows(path: str | Path, columns: Iterable[str]) -> Iterator[tuple[int, Row]]:
    """Yields every record of a table as `(row number, {column: cell})`.

    Args:
      path: a `.csv`, `.csv.gz`, `.jsonl`, `.jsonl.gz` or `.parquet` file.
      columns: the columns to read, in any case; the dictionary has the names as given here.

    Yields:
      The number of the record, from 1 and without the header, and its cells: text, a list of texts, or None when empty.

    Raises:
      UserError: the file is missing, empty, malformed or of another type, or lacks a column.
    """
    path, columns = Path(path), tuple(dict.fromkeys(columns))
    reader = _reader(path)
    number = 0
    for number, cells in reader(path, columns):
        yield number, {name: _cell(value, path, name, number) for name, value in zip(columns, cells, strict=True)}
    if not number:
        raise UserError(f"{path}: the table has no rows; give a file with at least one row below its header")


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


def _csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    csv.field_size_limit(_LONGEST_CELL)
    number = 0
    with _open(path) as file:
        # Bytes that are not UTF-8 become lone surrogates, which `_cell` finds with the row at hand.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            reader = csv.reader(text, strict=True)
            header = next(reader, None)
            if header is None:
                raise _empty(path)
            indices = [_index(path, header, column, columns) for column in columns]
            for record in reader:
                if not record:
                    continue
                number += 1
                if len(record) != len(header):
                    raise UserError(
                        f"{path}, row {number}: {len(record)} cells where the header has {len(header)}; "
                        "quote cells that hold commas, quotes or line breaks"
                    )
                yield number, [record[i] for i in indices]
        except csv.Error:
            raise UserError(
                f"{path}, row {number + 1}: malformed CSV; quote the cell, double the quotes inside it, and close it"
            ) from None
        except (EOFError, OSError, zlib.error):
            raise _damaged(path, number) from None


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
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
                yield number, [record.get(name) for name in exact]
        except (EOFError, OSError, zlib.error):
            raise _damaged(path, number) from None


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


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            header = file.schema_arrow.names
            exact = [header[_index(path, header, column, columns)] for column in columns]
            for batch in file.iter_batches(batch_size=1024, columns=exact):
                cells = [batch.column(name).to_pylist() for name in exact]
                for record in zip(*cells, strict=True):
                    number += 1
                    yield number, list(record)
    except (pa.ArrowException, OSError):
        raise UserError(f"{path}: malformed Parquet after row {number}; write or copy the file again") from None


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
