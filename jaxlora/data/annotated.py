"""Notes with marked entities, in the two formats of the i2b2 and n2c2 challenges.

n2c2 2018 is brat's standoff: beside NAME.txt a NAME.ann with lines `T1<tab>Drug 10 17<tab>aspirin`, in characters of
the text. An entity in fragments (`10 17;20 25`, mostly for a line break) is one entity, from the first character to the
last. Relations (R) and the other lines of brat are not read.

i2b2 2010 has a NAME.con with lines `c="the chest pain" 12:3 12:5||t="problem"`: from the fourth word of line 12 to the
sixth, words counted from 0 and lines from 1.

What the note has at an annotation must be what the annotation says, whitespace apart (in i2b2 capitals too, as its
annotations are in lower case): notes and annotations that were copied from different places do not fit.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlora.errors import UserError

Entity = tuple[int, int, str]

_BRAT = re.compile(r"T\d+\t(\S+) (\d{1,9} \d{1,9}(?:;\d{1,9} \d{1,9})*)\t(.+)")
_CONCEPT = re.compile(r'c="(.*)" (\d{1,9}):(\d{1,9}) (\d{1,9}):(\d{1,9})\|\|t="([^"]+)"')


@dataclass(frozen=True)
class Record:
    """One note of an annotated dataset.

    Attributes:
      where: how messages name it. id: of its own in its split. patient: notes of one are in one split.
      label: the name of a class, the entities as (start, end, name), or for a question int64 `[1 + answers, 2]`.
    """

    where: str
    id: str
    patient: str
    text: str
    label: str | list[Entity] | np.ndarray


def n2c2(folder: Path) -> Iterator[Record]:
    """Yields the notes of a folder of `.txt` and `.ann` files, in the order of their names.

    Raises:
      UserError: there are none, one has no partner, or an annotation does not fit; the file and the line are named.
    """
    return _notes(folder, ".ann", _brat)


def i2b2(folder: Path) -> Iterator[Record]:
    """Yields the notes of a folder of `.txt` and `.con` files, which may lie in subfolders of their own.

    Raises:
      UserError: as `n2c2` does.
    """
    return _notes(folder, ".con", _concept)


def _notes(folder: Path, suffix: str, parse: Callable[["_Note", str], Entity | None]) -> Iterator[Record]:
    texts, annotations = _by_name(folder, ".txt"), _by_name(folder, suffix)
    if not texts:
        raise UserError(f"{folder}: no .txt file in this folder; give the one with the notes and their {suffix} files")
    for name in sorted({*texts, *annotations}):
        for files, other, lacking in ((texts, annotations, suffix), (annotations, texts, ".txt")):
            if name in files and name not in other:
                raise UserError(f"{files[name]}: its {lacking} file is missing; add it, or remove this one")
        text = read_text(texts[name])
        if not text.strip():
            raise UserError(f"{texts[name]}: the note is empty; copy it again, or remove it with its {suffix} file")
        note, entities = _Note(text), []
        for number, line in enumerate(read_text(annotations[name]).split("\n"), 1):
            if not line.strip():
                continue
            try:
                entity = parse(note, line.rstrip("\r"))
            except ValueError as error:
                raise UserError(f"{annotations[name]}, line {number}: {error}") from None
            entities += [entity] if entity else []
        yield Record(str(annotations[name]), name, name, text, entities)


def _by_name(folder: Path, suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{suffix}")):
        if path.name.startswith("."):  # what macOS leaves on other file systems
            continue
        if path.stem in found:
            raise UserError(f"{path}: {found[path.stem].parent} has a file of this name too; keep one of them")
        found[path.stem] = path
    return found


class _Note:
    """A text, and where the words of its lines are."""

    def __init__(self, text: str):
        self.text = text
        self._words: list[list[tuple[int, int]]] | None = None

    def word(self, line: int, number: int) -> tuple[int, int]:
        """Returns start and end of a word; raises ValueError where there is none."""
        if self._words is None:
            self._words, at = [], 0
            for content in self.text.split("\n"):
                self._words.append([(at + m.start(), at + m.end()) for m in re.finditer(r"\S+", content)])
                at += len(content) + 1
        if not (1 <= line <= len(self._words) and number < len(self._words[line - 1])):
            raise ValueError(f"word {line}:{number} is not in the note; copy the two files from one place")
        return self._words[line - 1][number]


def _brat(note: _Note, line: str) -> Entity | None:
    if line[0] in "REAMN#*":  # relations, events, attributes, normalisations, comments, equivalences
        return None
    match = _BRAT.fullmatch(line)
    if not match:
        raise ValueError("neither an entity nor another line of brat; write T1, tab, type, offsets, tab, text")
    label, offsets, text = match.groups()
    fragments = [tuple(map(int, fragment.split())) for fragment in offsets.split(";")]
    if any(start >= end or end > len(note.text) for start, end in fragments):
        raise ValueError(f"offsets outside the note of {len(note.text)} characters; copy the two files from one place")
    _check(" ".join(note.text[start:end] for start, end in fragments), text)
    return _stripped(note.text, min(start for start, _ in fragments), max(end for _, end in fragments), label)


def _concept(note: _Note, line: str) -> Entity:
    match = _CONCEPT.fullmatch(line.rstrip())
    if not match:
        raise ValueError('not a concept; write c="TEXT" LINE:WORD LINE:WORD||t="TYPE"')
    text, *places, label = match.groups()
    first_line, first, last_line, last = map(int, places)
    start, end = note.word(first_line, first)[0], note.word(last_line, last)[1]
    if start >= end:
        raise ValueError("it ends before it begins; correct the two places")
    _check(note.text[start:end].lower(), text.lower())
    return start, end, label


def _check(found: str, told: str) -> None:
    if found.split() != told.split():
        raise ValueError("the annotation's text is not what the note has there; copy the two files from one place")
    if not told.split():
        raise ValueError("an annotation of blanks alone; correct its offsets, or remove it")


def _stripped(text: str, start: int, end: int, label: str) -> Entity:
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()), label


def read_text(path: Path) -> str:
    """Returns a file's text, line breaks as they are: offsets count them, but not a byte-order mark.

    Raises:
      UserError: it is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: not valid UTF-8; save the file in UTF-8") from None
