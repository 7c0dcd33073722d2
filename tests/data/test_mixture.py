"""A mixture has each note as often as its weight says, whole and under its own id."""

from collections import Counter

import numpy as np
import pytest

from jaxlora.data.mixture import mix
from jaxlora.data.tokens import TokenizedNotes
from jaxlora.errors import UserError


def corpus(start, count):
    """Note n has 1 + n % 3 pieces of 2 tokens each, all of them the number of the note."""
    notes = np.repeat(np.arange(count), 1 + np.arange(count) % 3)
    tokens = np.repeat(notes + start, 2).astype(np.uint16)
    offsets = np.arange(len(notes) + 1) * 2
    ids = np.asarray([f"{start + n:016x}" for n in range(count)])
    return TokenizedNotes(tokens, offsets, notes, ids, ids, None)


def seen(mixed):
    """How often each note is seen, each time with all of its pieces and no other's."""
    counts = Counter()
    pieces = np.split(mixed.tokens, mixed.offsets[1:-1])
    for number, id in enumerate(mixed.ids):
        own = [piece for piece, of in zip(pieces, mixed.notes, strict=True) if of == number]
        note = int(id, 16)
        assert len(own) == 1 + note % 100 % 3 and all((piece == note).all() and len(piece) == 2 for piece in own)
        counts[note] += 1
    return counts


def test_every_note_as_often_as_its_weight():
    counts = seen(mix([corpus(0, 40), corpus(100, 40), corpus(200, 40)], (1, 0.25, 2.5), 0))
    assert [counts[note] for note in range(40)] == [1] * 40
    assert sum(counts[note] for note in range(100, 140)) == 10
    thrice = [counts[note] for note in range(200, 240)]
    assert set(thrice) == {2, 3} and thrice.count(3) == 20


def test_the_seed_chooses():
    parts, weights = [corpus(0, 40), corpus(100, 40)], (1, 0.5)
    one, again, other = (mix(parts, weights, seed).fingerprint for seed in (0, 0, 1))
    assert one == again != other


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(UserError, match="config.data.mix: the weight 0 of a corpus is not above 0"):
        mix([corpus(0, 4), corpus(100, 4)], (1, 0), 0)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (float("inf"), "the weight inf of a corpus is above 1,000; give a smaller one"),
        (1e300, ".* is above 1,000"),
        (float("nan"), "the weight nan of a corpus is not above 0"),
        (0.01, "the weights leave no note of any corpus; give larger ones"),
    ],
)
def test_weights_that_no_mixture_has(weight, message):
    with pytest.raises(UserError, match=f"config.data.mix: {message}"):
        mix([corpus(0, 4)], [weight], 0)
