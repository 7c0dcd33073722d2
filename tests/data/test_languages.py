"""Notes in other alphabets: characters stay characters, from every kind of file to tokens and marked entities."""

import csv
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from jaxlora.config import dataset, native, table
from jaxlora.data import builders, generic
from jaxlora.data import native as reader
from jaxlora.data.builders import Work
from jaxlora.data.tokens import Tokenizer, tokenize
from jaxlora.eval.spans import entities

NOTES = [
    "Жалобы: кашель, одышка.\nПациент принимал аспирин 81 мг; назначен гепарин.",
    "Ο ασθενής παραπονείται για πυρετό.\nΈλαβε ασπιρίνη 81 mg· όχι ηπαρίνη.",
    "Жалоб нет; β-блокатор отменён, 38,5 °C «дома».",
    "Ἐν ἀρχῇ ἦν ὁ λόγος: naïve e\u0301 ≠ é, 5 µg, 😷.",
]
LABELS = ["да", "όχι", "да", "όχι"]
COLUMNS = ("номер", "κείμενο", "метка")
SHARES = ConfigDict({"validation": 0.0, "test": 0.0, "seed": 0})


def rows():
    return [(f"№{i}", text, label) for i, (text, label) in enumerate(zip(NOTES, LABELS, strict=True))]


def write(path):
    if ".csv" in path.name:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows()])
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in rows()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.table(dict(zip(COLUMNS, map(list, zip(*rows(), strict=True)), strict=True))), path)
    return str(path)


@pytest.mark.parametrize("name", ["заметки.csv", "σημειώσεις.csv.gz", "заметки.jsonl", "заметки.parquet"])
def test_tables(tmp_path, name):
    path = write(tmp_path / name)
    columns = dict(zip(("id", "text", "label"), COLUMNS, strict=True))
    parts = {split: table(path, split=split, **columns) for split in ("train", "test")}
    task, examples = generic.read("записи", dataset("binary", ("όχι", "да"), **parts), SHARES, b"k" * 32)
    builders.build(tmp_path / "data", Work(task, examples))
    split = builders.load(tmp_path / "data", "записи").split("test")
    found = [split[i] for i in range(len(split))]
    assert [one["text"] for one in found] == NOTES
    assert [task.labels[one["label"]] for one in found] == LABELS


@pytest.mark.parametrize("length", [16, 1000])
def test_marked_entities(tmp_path, small_base, length):
    """No letter of these notes has a piece of its own here: each is bytes."""
    words = "кашель аспирин гепарин πυρετό ασπιρίνη β-блокатор λόγος 😷 µg".split()
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for number, text in enumerate(NOTES):
            places = [match.span() for match in re.finditer("|".join(words), text)]
            lines = [f"T{i}\tСлово {a} {b}\t{text[a:b]}\n" for i, (a, b) in enumerate(places)]
            (tmp_path / part / f"записка{number}.txt").write_text(text, encoding="utf-8")
            (tmp_path / part / f"записка{number}.ann").write_text("".join(lines), encoding="utf-8")
    described = native("n2c2", str(tmp_path / "train"), str(tmp_path / "test"))
    task, examples = reader.read("записи", described, SHARES, b"k" * 32)
    builders.build(tmp_path / "data", Work(task, examples))
    split, tokenizer = builders.load(tmp_path / "data", "записи").split("test"), Tokenizer(small_base)
    notes = tokenize(split, tokenizer, length, "chunk", lambda _: None, "tokens")
    found = entities(notes.labels, np.repeat(notes.notes, notes.lengths), notes.spans)
    assert [NOTES[note][start:end] for note, start, end, _ in found] == [
        match for text in NOTES for match in re.findall("|".join(words), text)
    ]
    assert len(found) == len(words) and task.outputs == ("O", "B-Слово", "I-Слово")
    texts = [tokenizer.decode(row) for row in tokenizer.encode(NOTES)]
    assert texts == NOTES
