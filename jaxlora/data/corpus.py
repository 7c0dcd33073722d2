"""The corpora of step 1: every note of a release, cleaned, each text once, split by patient or by note."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jaxlora.data.deid import TREATMENTS, note_hash, treat
from jaxlora.data.examples import Example, keyed
from jaxlora.data.mimic import Release
from jaxlora.errors import UserError, one_of


@dataclass(frozen=True)
class Recipe:
    """How a note of a corpus becomes text to train on (`config.corpus`).

    Attributes:
      deid: what becomes of de-identification marks: "keep", "normalise" (all to `___`) or "drop".
      join_lines: the paper's cleaning: the brackets of marks, line breaks and runs of blanks become one blank.
      dedupe: a text that an earlier note had is left out.
      by_note: notes are split, as in the paper, and not patients; a patient's notes then lie on both sides.
      errors: notes that physicians flagged as errors are kept, as in the paper.
      exclude: hashes (`deid.note_hash`) of notes to leave out, such as `audit` writes.
    """

    deid: str = "keep"
    join_lines: bool = False
    dedupe: bool = True
    by_note: bool = False
    errors: bool = False
    exclude: frozenset[str] = frozenset()

    def text(self, note: str) -> str:
        """Returns the text of a note as it is trained on."""
        text = treat(note.replace("\r\n", "\n"), self.deid)
        return " ".join(re.sub(r"\[\*\*|\*\*\]", " ", text).split()) if self.join_lines else text


# Paper section 2.1, and the shares of the notes that validate and test.
PUBLISHED = Recipe(join_lines=True, dedupe=False, by_note=True, errors=True)
PUBLISHED_SHARES = (0.0, 0.1)


def recipe(corpus, mode: str) -> Recipe:
    """Returns the recipe of `config.corpus`, or the published one in "paper" mode.

    Raises:
      UserError: a field has no such value, or the file of `corpus.exclude` holds something else than hashes.
    """
    if mode == "paper":
        return replace(PUBLISHED, exclude=excluded(corpus.exclude))
    one_of("config.corpus.deid", corpus.deid, TREATMENTS)
    by_note = one_of("config.corpus.split", corpus.split, ("patient", "note")) == "note"
    return Recipe(corpus.deid, corpus.join_lines, corpus.dedupe, by_note, False, excluded(corpus.exclude))


@dataclass(frozen=True)
class Finish:
    """What is left to do with a note of `notes` where it is written: its text, and keyed identifiers."""

    recipe: Recipe
    key: bytes

    def __call__(self, note: Example) -> Example | str:
        """Returns the example, or why the note is left out."""
        text = self.recipe.text(note.text)
        # An audit hashes what is trained on, where the words of a mark whose brackets are gone remain.
        if self.recipe.exclude and self.recipe.exclude & {note_hash(text), note_hash(note.text)}:
            return "notes: excluded"
        if not text.strip():
            return "notes: no text"
        patient = keyed(self.key, f"patient:{note.patient}")
        return Example(keyed(self.key, note.id), patient, text, None, note.split)


def notes(
    release: Release, recipe: Recipe, split_of: Callable[[str], str | None], flow: Counter[str]
) -> Iterator[Example]:
    """Yields the notes of a release as they are in its tables, raw identifiers and all, for `Finish`.

    Args:
      split_of: the split of a patient, or of a note where they are split; a patient of none trains.
      flow: counts every note read, and those left out by reason.
    """
    seen: set[bytes] = set()
    for note in release.notes():
        flow["notes: read"] += 1
        reason = _unusable(note, recipe)
        if reason is None and recipe.dedupe:
            digest = hashlib.blake2b(note.text.encode(), digest_size=16).digest()
            reason = "the same text again" if digest in seen else None
            seen.add(digest)
        if reason:
            flow[f"notes: {reason}"] += 1
            continue
        split = split_of(f"note:{note.id}" if recipe.by_note else note.patient)
        yield Example(f"note:{note.id}", note.patient, note.text, None, split or "train")


def _unusable(note, recipe: Recipe) -> str | None:
    if note.error and not recipe.errors:
        return "flagged as an error"
    if not (note.text or "").strip():
        return "no text"
    return "no patient" if note.patient is None else None


def excluded(path: str) -> frozenset[str]:
    """Returns the hashes of a file such as `audit` writes, one a line; none for "".

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    if not path:
        return frozenset()
    if not Path(path).is_file():
        raise UserError(f"config.corpus.exclude: {path}: no such file; `jaxlora audit` writes one")
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if line and not re.fullmatch(r"[0-9a-f]{16}", line):
            raise UserError(f"{path}, line {number}: not a hash of 16 hexadecimal digits; `jaxlora audit` writes them")
    return frozenset(line for line in lines if line)
