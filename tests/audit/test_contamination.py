"""The overlap of test notes with a corpus against sets of tuples of words."""

import re

import numpy as np
import pytest

from jaxlora.audit import contamination
from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.deid import note_hash
from jaxlora.data.examples import Example, Task


def words(text):
    return "".join(c.lower() if c.isalpha() else " " for c in text).split()


def grams(text):
    """The distinct 13-grams of a text that has no marks."""
    found = words(text)
    return {tuple(found[i : i + 13]) for i in range(len(found) - 12)}


def of_test(text):
    """The grams of a test note: within its passages."""
    return set().union(*(grams(piece) for piece in re.split(r"\[\*\*.*?\*\*\]|___+|\n\s*\n", text)))


def of_corpus(text):
    return grams(re.sub(r"\[\*\*.*?\*\*\]|___+", " ", text))


def corpus(folder, texts, split="train"):
    examples = [Example(f"{i:016x}", f"{i:016x}", text, None, split) for i, text in enumerate(texts)]
    builders.build(folder, Work(Task("notes", "lm"), examples))
    return folder


@pytest.fixture(scope="module")
def case(writer, tmp_path_factory):
    """Test notes of few and many words and marks, and a corpus of 400 notes: strangers, templates, copies of test notes
    with other marks, and parts of them."""
    made = writer(7)
    sentences = [made.note(made.random.randint(5, 22)) for _ in range(90)]

    def note(count):
        return ".\n".join(made.random.choices(sentences, k=count))

    tests = [note(made.random.randint(0, 12)) for _ in range(60)]
    tests = [text.replace(".\n", " [**Name 12**] ", 2).replace(".\n", "\n\n", i % 4) for i, text in enumerate(tests)]
    tests += ["", "too short", f"{made.note(40)}\n\n{made.note(3)}", "ασθενής με βήχα " * 9, "один " * 20]
    texts = [note(made.random.randint(1, 9)) or "nothing" for _ in range(320)]
    for i, text in enumerate(tests):
        other = text.replace("[**Name 12**]", ("___", "[**Other 3**]", "")[i % 3])
        texts += [f"Seen 3 times. {other} and more"] if i % 2 else [other[: len(other) // 3] + " x"]
    folder = corpus(tmp_path_factory.mktemp("case"), texts)
    return folder, tests, texts


def check(found, tests, texts):
    held = [of_corpus(text) for text in texts]
    everything = set().union(*held)
    exclude = set()
    for overlap, alone, text in zip(found.overlap, found.alone, tests, strict=True):
        own = of_test(text)
        if not own:
            assert np.isnan(overlap) and not alone
            continue
        assert overlap == pytest.approx(len(own & everything) / len(own), abs=1e-12)
        holding = [number for number, grams_of in enumerate(held) if 2 * len(own & grams_of) > len(own)]
        assert alone == bool(holding)
        exclude |= {note_hash(texts[number]) for number in holding}
    assert set(found.exclude) == exclude and list(found.exclude) == sorted(exclude)
    return exclude


def test_overlap_and_notes_to_exclude(case):
    folder, tests, texts = case
    index = contamination.index(iter(tests))
    found = contamination.scan(folder, "notes", index)
    assert len(index.sizes) == len(tests) and found.notes == len(texts)
    exclude = check(found, tests, texts)
    assert 10 < len(exclude) < len(texts) - 100 and 0.1 < np.nanmean(found.overlap) < 0.95


def test_portions_do_not_change_it(case, monkeypatch):
    folder, tests, texts = case
    monkeypatch.setattr(contamination, "_PAIRS", 50)
    check(contamination.scan(folder, "notes", contamination.index(iter(tests))), tests, texts)


def test_two_processes_find_the_same(case, monkeypatch):
    folder, tests, _ = case
    monkeypatch.setattr(contamination, "_BLOCK", 100)
    index = contamination.index(iter(tests))
    one, two = (contamination.scan(folder, "notes", index, workers=n) for n in (1, 2))
    assert one.exclude == two.exclude and np.array_equal(one.alone, two.alone)
    assert np.array_equal(one.overlap, two.overlap, equal_nan=True)


def test_without_the_excluded_notes_none_holds_a_test_note(case, tmp_path):
    folder, tests, texts = case
    index = contamination.index(iter(tests))
    first = contamination.scan(folder, "notes", index)
    left = [text for text in texts if note_hash(text) not in first.exclude]
    again = contamination.scan(corpus(tmp_path, left), "notes", index)
    assert len(left) < len(texts) and not again.alone.any() and again.exclude == ()
    assert (again.overlap <= first.overlap)[~np.isnan(first.overlap)].all()


def test_sections_put_together_are_still_found(writer, tmp_path):
    """An admission note's sections lie apart in the summary, under longer headings and with other marks."""
    made = writer(3)
    complaint, illness, history = made.note(14), made.note(50), made.note(30)
    summary = (
        f"History of Present Illness:\n{illness}\n\nLabs: {made.note(20)}\n\nPast Medical History:\n{history}, ___"
    )
    summary = f"Chief Complaint:\n{complaint}\n\nProcedure: {made.note(9)}\n\n{summary} yo"
    note = f"CHIEF COMPLAINT: {complaint}\n\nPRESENT ILLNESS: {illness}\n\nMEDICAL HISTORY: {history}, 65 yo"
    index = contamination.index(iter([note]))
    found = contamination.scan(corpus(tmp_path, [summary.replace("\n", " ")]), "notes", index)
    assert found.overlap[0] == 1 and found.exclude == (note_hash(summary),)


def test_no_test_note_has_a_gram(case):
    index = contamination.index(iter(["a b", ""]))
    found = contamination.scan(case[0], "notes", index)
    assert len(index.sizes) == 2 and np.isnan(found.overlap).all() and found.exclude == ()
    assert len(contamination.index(iter([])).sizes) == 0


def test_held_out_notes_are_shared_by_datasets(tmp_path):
    for name, texts in {"a": ("x", "y", "x"), "b": ("y", "z", "w")}.items():
        rows = [Example(f"{i:x}", f"{i:x}", text, i % 2, "test") for i, text in enumerate(texts)]
        rows.append(Example("f", "f", "train", 0, "train"))
        builders.build(tmp_path, Work(Task(name, "binary", ("n", "y")), rows))
    texts, places = contamination.held_out_notes(tmp_path, ["a", "b"])
    assert texts == ["x", "y", "z", "w"] and [of.tolist() for of in places] == [[0, 1, 0], [1, 2, 3]]
