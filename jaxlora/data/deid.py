"""De-identification marks, and a note's text without them: `[** ... **]` in MIMIC-III, `___` in MIMIC-IV."""

import hashlib
import re

from jaxlora.errors import one_of

TREATMENTS = ("keep", "normalise", "drop")
MARK = "___"

# Not across another bracket, so that a mark that is never closed costs one look and not the rest of the note.
_MARKS = re.compile(r"\[\*\*[^\[\]]*\*\*\]|_{3,}")
_CUTS = re.compile(rf"{_MARKS.pattern}|\n\s*\n")
_NO_LETTERS = re.compile(r"[\W\d_]+")
_LETTERS = bytes(c if chr(c).isalpha() and c < 128 else 32 for c in range(256))


def treat(text: str, how: str) -> str:
    """Returns a note with its marks kept, each normalised to `___`, or each dropped, a blank in its place.

    Raises:
      UserError: `how` is none of `TREATMENTS`.
    """
    if one_of("corpus.deid", how, TREATMENTS) == "keep":
        return text
    return _MARKS.sub(MARK if how == "normalise" else " ", text)


def normalised(text: str) -> str:
    """Returns the words of a note, in lower case with one blank between them: what two releases of it share.

    Marks and digits are left out and not replaced by one mark: MIMIC-IV masks ages that MIMIC-III prints and
    MIMIC-III splits a name over several marks, so a placeholder would differ where the notes do not. Whatever `treat`
    and the joining of lines do to a note, its normalised text stays the same.
    """
    text = _MARKS.sub(" ", text).lower()
    if text.isascii():
        return b" ".join(text.encode().translate(_LETTERS).split()).decode()
    return _NO_LETTERS.sub(" ", text).strip()


def passages(text: str) -> list[str]:
    """Returns a note cut at its blank lines and at its marks: what another copy of it has in one piece, too."""
    return _CUTS.split(text)


def note_hash(text: str) -> str:
    """Returns the 16 hexadecimal digits by which `audit` and the corpora know a note, those of its normalised text."""
    return hashlib.blake2b(normalised(text).encode(), digest_size=8).hexdigest()
