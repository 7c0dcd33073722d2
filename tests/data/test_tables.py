"""Tables are read as text, whatever their format, and told apart from broken ones without quoting a cell."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxlora.data import tables
from jaxlora.errors import UserError

SECRET = "Sentinel9Q"


def read(path, *columns):
    return list(tables.rows(path, columns))


def test_csv_keeps_zeros_quotes_commas_and_line_breaks(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfID,Text\r\n007,"a ""b"", c\r\n\r\nd: \xc3\xa9"\r\n\r\n008,""\r\n')
    assert read(path, "id", "TEXT") == [
        (1, {"id": "007", "TEXT": 'a "b", c\r\n\r\nd: é'}),
        (2, {"id": "008", "TEXT": None}),
    ]


def test_compressed_csv_reads_the_same(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"id,text\n1,x\n", mtime=0))
    assert read(tmp_path / "t.csv.gz", "text") == [(1, {"text": "x"})]


def test_a_cell_of_two_megabytes_is_read(tmp_path):
    (tmp_path / "t.csv").write_text('id,text\n1,"' + "long\n" * 400_000 + '"\n')
    assert len(read(tmp_path / "t.csv", "text")[0][1]["text"]) == 2_000_000


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_json_lines(tmp_path, name):
    lines = b'{"ID": 7, "text": "a\\nb", "labels": ["x", 2], "v": 1.50}\n\n{"ID": null, "text": ""}\n'
    (tmp_path / name).write_bytes(gzip.compress(lines, mtime=0) if name.endswith("gz") else lines)
    assert read(tmp_path / name, "id", "text", "labels", "v") == [
        (1, {"id": "7", "text": "a\nb", "labels": ["x", "2"], "v": "1.50"}),
        (2, {"id": None, "text": None, "labels": None, "v": None}),
    ]


def test_parquet(tmp_path):
    table = pa.table({"Id": [7, None], "text": ["a", "b"], "labels": [["x", "y"], []]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", "id", "labels") == [
        (1, {"id": "7", "labels": ["x", "y"]}),
        (2, {"id": None, "labels": None}),
    ]


def test_a_table_is_read_as_it_is_asked_for(tmp_path):
    """A damaged end does not keep the rows before it from being read: the file is never loaded whole."""
    with (tmp_path / "t.csv").open("w") as file:
        file.write("id,text\n")
        file.writelines(f'{i},"{"long " * 200}"\n' for i in range(100_000))
        file.write("3,c,d\n")
    stream = tables.rows(tmp_path / "t.csv", ["id"])
    assert [next(stream)[1]["id"] for _ in range(2)] == ["0", "1"]
    with pytest.raises(UserError, match="row 100001: 3 cells where the header has 2"):
        list(stream)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_only_the_rows_that_are_kept_with_their_numbers(tmp_path, name):
    cells = {"Item": ["720", "0720", "211", None, "720"], "value": ["a", "b", "c", "d", "e"]}
    records = [dict(zip(cells, record, strict=True)) for record in zip(*cells.values(), strict=True)]
    if name == "t.parquet":
        pq.write_table(pa.table(cells), tmp_path / name)
    elif name == "t.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    else:
        lines = [f"{record['Item'] or ''},{record['value']}\n" for record in records]
        (tmp_path / name).write_text("Item,value\n" + "".join(lines))
    kept = list(tables.rows(tmp_path / name, ("value", "item"), {"item": ("720", "211")}))
    assert [(number, row["value"]) for number, row in kept] == [(1, "a"), (3, "c"), (5, "e")]
    assert list(tables.rows(tmp_path / name, ("value", "item"), {"item": ("7", "8")})) == []


def test_line_ends_of_two_kinds(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'id,text\r\n1,"a\nb"\n2,c\r\n')
    assert [row["text"] for _, row in read(tmp_path / "t.csv", "text")] == ["a\nb", "c"]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_notes_whose_lines_look_like_rows(tmp_path, name):
    """A reader that begins in the middle of a file takes such a line for a row."""
    lines = ["alert, oriented", "Lungs clear, no wheeze, no rales", 'said ""ok"", left', "a,b", ""]
    notes = ["\n".join(lines[i % 5 :] + lines * (i % 7)) + f"\nend {i}" for i in range(60)]
    rows = [f'{i},"Nursing","{notes[i % 60]}"\n' for i in range(200_000)]
    content = ("id,category,text\n" + "".join(rows)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    for number, (found, row) in enumerate(tables.rows(tmp_path / name, ("id", "text")), 1):
        assert (found, row["id"]) == (number, str(number - 1))
        assert row["text"] == notes[(number - 1) % 60].replace('""', '"')
    assert number == 200_000 == tables.count(tmp_path / name)
    kept = [row["id"] for _, row in tables.rows(tmp_path / name, ("id", "text"), {"id": ("7", "199999")})]
    assert kept == ["7", "199999"]


def test_a_folder_may_look_like_a_pattern(tmp_path):
    folder = tmp_path / "mimic[1]*?"
    folder.mkdir()
    (folder / "t.csv").write_text("id,text\n1,a\n")
    assert read(folder / "t.csv", "text") == [(1, {"text": "a"})] and tables.count(folder / "t.csv") == 1


def test_counting_reads_quoted_line_breaks(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b'id,text\n1,"a\n\nb"\n2,c\n', mtime=0))
    assert tables.count(tmp_path / "t.csv.gz") == 2
    (tmp_path / "u.csv").write_text("id,text\n1,a\n2\n")
    with pytest.raises(UserError, match="row 2: 1 cells where the header has 2"):
        tables.count(tmp_path / "u.csv")


def test_parts_of_a_compressed_file_read_as_one(tmp_path):
    parts = gzip.compress(b"id,text\n1,a\n", mtime=0) + gzip.compress(b"2,b\n", mtime=0)
    (tmp_path / "t.csv.gz").write_bytes(parts)
    assert [row["text"] for _, row in read(tmp_path / "t.csv.gz", "text")] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"x", "unknown type"),
        ("t.csv", b"", "empty (0 bytes)"),
        ("t.csv.gz", gzip.compress(b"", mtime=0), "empty (0 bytes)"),
        ("t.csv", b"id,text\n", "no rows"),
        ("t.csv", b"id,test\n1,%s\n", "no column 'text'; did you mean 'test'? (columns: id, test)"),
        ("t.csv", b"id,body\n1,%s\n", "no column 'text'; valid: body, id"),
        ("t.csv", b"1,%s came in with a cough, and then some more words\n", "none of the columns id, text is in"),
        ("t.csv", b"A12,%s\n", "none of the columns id, text is in its first row; name them, or add a header"),
        ("t.csv", b"id,Text,TEXT\n1,%s,b\n", "2 columns are named 'text'"),
        ("t.csv", b"id,text,text\n1,%s,b\n", "2 columns are named 'text'"),
        ("t.csv", b"id,text\n1,%s\nID,TEXT\n2,b\n", "row 2: the header again"),
        ("t.jsonl", b'{"id": 1, "text": ' + b"[" * 100_000 + b"]" * 100_000 + b', "x": "%s"}\n', "malformed JSON"),
        ("t.jsonl", b'{"id": 1, "text": [["%s"]]}\n', "column 'text', row 1: a list of lists"),
        ("t.csv", b"id,text\n1,a\n2,%s,c\n", "row 2: 3 cells where the header has 2"),
        ("t.csv", b"id,text\n1,a\n2\n3,%s\n", "row 2: 1 cells where the header has 2"),
        ("t.csv", b"id,text\n1,%s\nid,text\n2,b\n", "row 2: the header again"),
        ("t.csv", b'id,text\n1,"' + b"%s " * 7_000_000 + b'"\n', "row 1: malformed CSV"),
        ("t.csv", b'id,text\n1,a\n2,"%s\n3,c\n', "row 2: malformed CSV"),
        ("t.csv", b'id,text\n1,"a"%s"\n', "row 1: malformed CSV"),
        ("t.csv.gz", gzip.compress(b"id,text\n1,%s\n", mtime=0)[:-8] + bytes(8), "damaged or cut short"),
        ("t.csv", b"id,text\n1,a\n2,%s\xff\n", "column 'text', row 2: not valid UTF-8"),
        ("t.csv.gz", gzip.compress(b"id,text\n" + b"1,%s\n" * 99, mtime=0)[:-9], "damaged or cut short"),
        ("t.csv.gz", b"id,text\n1,%s\n", "damaged or cut short"),
        ("t.jsonl", b'{"id": 1, "text": "a"}\n{"id": 2, "text": "%s\n', "row 2: malformed JSON"),
        ("t.jsonl", b'["%s"]\n', "row 1: not a JSON object"),
        ("t.jsonl", b'{"id": 1, "text": {"%s": 2}}\n', "column 'text', row 1: neither text nor a list"),
        ("t.jsonl", b'{"id": 1, "text": "%s\\ud800"}\n', "column 'text', row 1: not valid UTF-8"),
        ("t.jsonl", b'{"id": 1, "body": "%s"}\n', "no column 'text'; valid: body, id"),
        ("t.parquet", b"PAR1 %s", "malformed Parquet"),
    ],
)
def test_errors_name_the_place_and_quote_nothing(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.replace(b"%s", SECRET.encode()))
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, "id", "text")
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "notes.csv").write_text("id\n1\n")
    with pytest.raises(UserError, match="no such file; did you mean 'notes.csv'"):
        read(tmp_path / "note.csv", "id")


def test_truncated_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [SECRET * 99]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="malformed Parquet"):
        read(path, "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": 1}))
    (tmp_path / "t.jsonl").chmod(0)
    with pytest.raises(UserError, match="may not read"):
        read(tmp_path / "t.jsonl", "id")


def test_what_pandas_leaves_where_there_is_nothing_is_empty(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": NaN, "text": "a"}\n{"id": 2, "text": NaN}\n')
    pq.write_table(pa.table({"id": [float("nan"), 1.0], "text": ["a", None]}), tmp_path / "t.parquet")
    assert [row["id"] for _, row in read(tmp_path / "t.jsonl", "id", "text")] == [None, "2"]
    assert [row["id"] for _, row in read(tmp_path / "t.parquet", "id", "text")] == [None, "1.0"]


def test_the_columns_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text('"A", b\n1,2\n')
    assert tables.columns(tmp_path / "t.csv") == ["A", "b"]
    with pytest.raises(UserError, match="no such file"):
        tables.columns(tmp_path / "other.csv")
