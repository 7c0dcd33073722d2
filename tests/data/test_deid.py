"""De-identification marks of both releases, and the text that is left without them."""

import hashlib
import re
import time

import pytest

from jaxlora.data.deid import TREATMENTS, normalised, note_hash, passages, treat
from jaxlora.errors import UserError

NOTE = "Mr. [**Known lastname 123**] is a 65 yo man, seen on [**2151-7-16**]\nat [** **] by ___; a_b __ [**open"


def test_the_three_treatments():
    assert treat(NOTE, "keep") == NOTE
    assert treat(NOTE, "normalise") == "Mr. ___ is a 65 yo man, seen on ___\nat ___ by ___; a_b __ [**open"
    assert treat(NOTE, "drop").split() == "Mr. is a 65 yo man, seen on at by ; a_b __ [**open".split()
    with pytest.raises(UserError, match="corpus.deid: no 'normalize'; did you mean 'normalise'"):
        treat(NOTE, "normalize")


def test_a_mark_over_a_line_break_is_one_mark():
    assert treat("at [**Hospital1\n 18**] today", "normalise") == "at ___ today"


def test_marks_that_are_never_closed_take_no_time():
    start = time.monotonic()
    assert treat("[**" * 100_000, "drop") == "[**" * 100_000
    assert time.monotonic() - start < 2


def slow(text):
    """The same, one character at a time."""
    text = re.sub(r"\[\*\*[^\[\]]*\*\*\]|_{3,}", " ", text).lower()
    return " ".join("".join(c if c.isalpha() else " " for c in text).split())


@pytest.mark.parametrize(
    "text", [NOTE, "", "123 ___ ", "Ναι, ο 65χρονος ΑΣΘΕΝΉΣ", "Жалобы: кашель\r\n2 дня", "a\xa0b\u2028c"]
)
def test_only_words_are_left(text):
    assert normalised(text) == slow(text)


@pytest.mark.parametrize("how", TREATMENTS)
def test_a_note_is_known_by_its_words_whatever_became_of_its_marks_lines_and_digits(how):
    other = " ".join(treat(NOTE, how).replace("65", "[**Age over 90 **]").upper().split())
    assert note_hash(other) == note_hash(NOTE) == hashlib.blake2b(slow(NOTE).encode(), digest_size=8).hexdigest()
    assert note_hash(NOTE + " x") != note_hash(NOTE)


def test_passages_end_at_marks_and_blank_lines():
    assert passages("a b [**c**] d\ne\n \nf ___ g") == ["a b ", " d\ne", "f ", " g"]
