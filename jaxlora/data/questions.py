"""Questions on reports (RadQA) and pairs of sentences (MedNLI), in the files they are given out in.

RadQA is JSON as SQuAD 2 has it: `data` → `paragraphs` (`context`, `qas`) → `question`, `answers` (`text`,
`answer_start`), `is_impossible`. A note is the question, a line break, and the context. MedNLI is JSON lines with
`pairID`, `sentence1` (premise), `sentence2` (hypothesis) and `gold_label`; a note is the premise, a line break, and the
hypothesis.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlora.data import tables
from jaxlora.data.annotated import Record, read_text
from jaxlora.errors import UserError

_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a pair, which JSON may escape alone and UTF-8 cannot hold


def radqa(path: Path) -> Iterator[Record]:
    """Yields the questions of a file. Those of one entry of `data`, a patient's reports, stay in one split.

    Raises:
      UserError: it is not such a file, or an answer is not in its context; the place in the file is named.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: malformed JSON; copy it again") from None
    for entry, article in enumerate(_field(content, "data", list, str(path)), 1):
        for number, paragraph in enumerate(_field(article, "paragraphs", list, f"{path}, entry {entry}"), 1):
            where = f"{path}, entry {entry}, paragraph {number}"
            context = _text(_field(paragraph, "context", str, where), where)
            for asked, question in enumerate(_field(paragraph, "qas", list, where), 1):
                yield _question(question, context, f"{where}, question {asked}", str(entry))


def _question(question: Any, context: str, where: str, entry: str) -> Record:
    text = _text(_field(question, "question", str, where), where)
    id = _text(str(_field(question, "id", (str, int), where)), where)
    answers = _field(question, "answers", list, where)
    if bool(answers) == question.get("is_impossible", not answers):
        raise UserError(f"{where}: is_impossible and answers disagree; correct one of them")
    begin = len(text) + 1
    regions = [(begin, begin + len(context))]
    for answer in answers:
        words, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
        if not words.strip() or start < 0 or context[start : start + len(words)] != words:
            raise UserError(f"{where}: an answer's text is not in the context at its answer_start; copy the file again")
        regions.append((begin + start, begin + start + len(words)))
    if not text.strip() or not context.strip():
        raise UserError(f"{where}: the question or its context is empty; correct it")
    return Record(where, id, entry, f"{text}\n{context}", np.asarray(regions, np.int64))


def _field(value: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), kind):
        raise UserError(f"{where}: no field {name!r}, or one of another type; is this a file of RadQA?")
    return value[name]


def _text(value: str, where: str) -> str:
    if _SURROGATE.search(value):
        raise UserError(f"{where}: half of a surrogate pair, which is no character; copy the file again")
    return value


def mednli(path: Path) -> Iterator[Record]:
    """Yields the pairs of a file. Those of one premise stay in one split.

    Raises:
      UserError: what `tables.rows` raises, or a row without one of the four; the column and the row are named.
    """
    columns = ("pairID", "sentence1", "sentence2", "gold_label")
    for number, cells in tables.rows(path, columns):
        for column in columns:
            if not isinstance(cells[column], str) or not cells[column].strip():
                raise UserError(f"{tables.where(path, column, number)}: no text; fill the cell or remove the row")
        id, premise, hypothesis, label = (cells[column] for column in columns)
        where = tables.where(path, "gold_label", number)
        yield Record(where, id, premise, f"{premise}\n{hypothesis}", label.strip())
