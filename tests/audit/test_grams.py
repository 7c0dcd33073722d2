"""Hashes of 13 words in a row against tuples of 13 words."""

import random

import numpy as np

from jaxlora.audit.grams import LENGTH, batches, grams

WORDS = ["fever", "no", "Cough", "x", "кашель", "ασθενής", "pain", "b", "c", "of", "the"]


def of_tuples(texts):
    """The same, as tuples of words: `[(note, gram), ...]` in reading order."""
    found = []
    for note, text in enumerate(texts):
        words = text.lower().split()
        found += [(note, tuple(words[i : i + LENGTH])) for i in range(len(words) - LENGTH + 1)]
    return found


def notes(count, seed=0, most=60):
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(0, most))) for _ in range(count)]


def test_grams_are_equal_where_the_words_are():
    texts = [*notes(300), " ".join(["fever"] * 40), " ".join(["x"] * 13), " ".join(["x"] * 12), ""]
    texts += texts[:20]
    hashes, of = grams(texts)
    wanted = of_tuples(texts)
    assert of.tolist() == [note for note, _ in wanted]
    of_gram, of_hash = {}, {}
    for value, (_, gram) in zip(hashes.tolist(), wanted, strict=True):
        assert of_gram.setdefault(gram, value) == value and of_hash.setdefault(value, gram) == gram
    assert len(of_gram) > 5000


def test_a_gram_does_not_depend_on_where_it_stands():
    gram = "one two three four five six seven eight nine ten eleven twelve thirteen"
    alone = grams([gram])[0]
    assert len(alone) == 1
    for before in ("zero ", "z " * 5000, "zero zero zero "):
        assert alone[0] in grams(["other note", before + gram + " after"])[0]
    assert alone[0] not in grams([gram.replace(" ", "", 1) + " fourteen"])[0]


def test_a_gram_ends_with_its_note():
    assert len(grams(["a b c d e f g", "h i j k l m n"])[0]) == 0


def test_no_words():
    for texts in ([], [""], ["", "12 . ___", "\n"]):
        hashes, of = grams(texts)
        assert hashes.dtype == np.uint64 and len(hashes) == len(of) == 0


def test_batches_hold_every_text_in_order():
    texts = ["a" * n for n in (0, 5, 2**20, 3, 2**21, 1)]
    made = list(batches(iter(texts)))
    assert [text for batch in made for text in batch] == texts and [len(b) for b in made] == [3, 2, 1]
