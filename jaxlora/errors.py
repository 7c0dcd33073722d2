"""The one exception for what a user can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a file, a path or a parameter, told in one line with its remedy.

    The command line prints the message and exits with 2; it never shows a traceback for it.
    The message names a file, column, row number or parameter, never a note's text and never an identifier.
    """


def nearest(word: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the valid spelling nearest to `word`, else `; valid: a, b, c`."""
    valid = sorted(valid)
    match = difflib.get_close_matches(word, valid, n=1, cutoff=0.6)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; valid: {', '.join(valid)}" if valid else "; there are none"


def one_of(name: str, value: str, valid: Iterable[str]) -> str:
    """Returns `value` where it is one of `valid`.

    Raises:
      UserError: it is not; the message gives `name` and the nearest valid spelling.
    """
    valid = tuple(valid)
    if value not in valid:
        raise UserError(f"{name}: no {value!r}{nearest(value, valid)}")
    return value
