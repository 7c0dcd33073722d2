"""Entities from tags and answers from logits, beside slow and obvious ways to find them."""

import itertools

import numpy as np
import pytest

from jaxlora.data.tokens import TokenizedNotes
from jaxlora.eval import metrics, spans
from jaxlora.eval.predictions import Predictions

NAMES = ("O", "B-a", "I-a", "B-b", "I-b")
IDS = np.asarray(["x", "y"])


def slow_entities(names, notes, places) -> list[tuple]:
    """One token after another, as the script of CoNLL does: O, B, another type and another note close an entity."""
    found, now = [], None
    for name, note, (start, end) in zip([*names, "O"], [*notes, -1], [*places, (0, 0)], strict=True):
        kind = name[2:]
        if now and (name == "O" or name[0] == "B" or kind != now[1] or note != now[0]):
            found.append(now)
            now = None
        if name != "O":
            now = now or (note, kind, [])
            now[2].append((start, end))
    rows = []
    for note, kind, held in found:
        solid = [place for place in held if place[0] < place[1]]
        if solid:
            rows.append((note, solid[0][0], solid[-1][1], "ab".index(kind)))
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_entities_are_those_of_a_walk_over_the_tokens(seed):
    rng = np.random.default_rng(seed)
    tags = rng.choice(5, 200, p=(0.3, 0.1, 0.3, 0.1, 0.2))
    notes = np.sort(rng.integers(4, size=200))
    starts = np.arange(200) * 3
    places = np.stack([starts, starts + rng.integers(0, 3, 200)], axis=1)
    found = spans.entities(tags, notes, places)
    assert found.shape[1] == 4 and len(found) > 20
    assert list(map(tuple, found.tolist())) == slow_entities([NAMES[t] for t in tags], notes.tolist(), places.tolist())


def test_bos_between_two_chunks_does_not_end_an_entity():
    tags, notes = np.asarray([-1, 0, 1, -1, 2, 0]), np.zeros(6, np.int64)
    places = np.asarray([[0, 0], [0, 1], [1, 2], [0, 0], [2, 5], [5, 6]])
    assert spans.entities(tags, notes, places).tolist() == [[0, 1, 5, 0]]


def test_no_entity():
    assert spans.entities(np.zeros(3, np.int64), np.zeros(3, np.int64), np.zeros((3, 2), np.int64)).shape == (0, 4)
    empty = np.zeros(0, np.int64)
    assert spans.entities(empty, empty, np.zeros((0, 2), np.int64)).shape == (0, 4)


def marked(found, truth, tags=(0, 1), chosen=(0, 0)):
    found, truth = (np.asarray(rows, np.int64).reshape(-1, 4) for rows in (found, truth))
    return Predictions("tokens", NAMES, IDS, IDS, np.asarray(tags), chosen=np.asarray(chosen), found=found, truth=truth)


def test_an_entity_counts_where_type_and_both_ends_are_exact():
    truth = [(0, 0, 5, 0), (0, 7, 9, 1), (1, 0, 5, 0), (1, 6, 9, 1)]
    found = [(0, 0, 5, 0), (0, 7, 9, 0), (1, 0, 4, 0), (1, 6, 9, 1), (1, 20, 30, 1)]
    values = metrics.evaluate(marked(found, truth))
    assert values["precision"] == pytest.approx(2 / 5) and values["recall"] == pytest.approx(2 / 4)
    assert values["f1"] == pytest.approx(4 / 9)
    assert values["f1_a"] == pytest.approx(2 / 5) and values["f1_b"] == pytest.approx(2 / 4)
    assert (values["accuracy"], values["entities"], values["n"]) == (0.5, 4, 2)


def test_leniently_an_entity_counts_where_it_overlaps_one_of_its_type():
    truth = [(0, 0, 5, 0), (0, 7, 9, 1), (1, 0, 9, 0), (1, 20, 22, 1)]
    # One too long; one of another type; two in one annotated; one that only touches.
    found = [(0, 2, 6, 0), (0, 7, 9, 0), (1, 0, 3, 0), (1, 4, 9, 0), (1, 22, 25, 1)]
    values = metrics.evaluate(marked(found, truth))
    precision, recall = 3 / 5, 2 / 4
    assert values["f1_lenient"] == pytest.approx(2 * precision * recall / (precision + recall)) and values["f1"] == 0
    assert metrics.evaluate(marked(truth, truth))["f1_lenient"] == 1
    assert (
        metrics.evaluate(marked([], truth))["f1_lenient"] == metrics.evaluate(marked(found[:1], []))["f1_lenient"] == 0
    )
    assert np.isnan(metrics.evaluate(marked([], []))["f1_lenient"])


def test_where_nothing_is_marked():
    values = metrics.evaluate(marked([], [(0, 0, 5, 0)]))
    assert (values["f1"], values["precision"], values["recall"], values["f1_a"]) == (0, 0, 0, 0)
    assert np.isnan(values["f1_b"]) and np.isnan(metrics.evaluate(marked([], []))["f1"])


# By the rules of evaluate-v2.0.py, SQuAD 2's own script.
@pytest.mark.parametrize(
    ("found", "truth", "exact", "f1"),
    [
        ("the Cat, sat.", "cat sat", 1, 1),
        ("a small cat", "the cat", 0, 2 / 3),
        ("no no yes", "no yes yes", 0, 2 / 3),
        ("the", "a", 1, 1),
        ("", "", 1, 1),
        ("", "cat", 0, 0),
        ("cat", "", 0, 0),
        ("theatre", "atre", 0, 0),
        ("Ο λόγος!", "ο  λόγος", 1, 1),
    ],
)
def test_answers_are_compared_as_squad_does(found, truth, exact, f1):
    a, b = spans.normalised(found), spans.normalised(truth)
    assert (a == b) == bool(exact) and spans.token_f1(a, b) == pytest.approx(f1)


TEXT = "Why?\nb c d e f g h"


def asked(pieces, answers):
    """A question of one token and a context of one-letter tokens, cut into `pieces` (start, end) after BOS."""
    places, ends, notes, offsets = [], [], [], [0]
    for start, end in pieces:
        places += [(0, 0), (0, 4), *((5 + 2 * i, 6 + 2 * i) for i in range(start, end))]
        ends.append((0, 0))
        notes.append(0)
        offsets.append(len(places))
    label = np.asarray([(5, len(TEXT)), *answers], np.int64)
    source = [{"id": "x", "patient": "x", "text": TEXT, "label": label}]
    tokens = np.zeros(len(places), np.uint16)
    return TokenizedNotes(
        tokens, np.asarray(offsets), np.asarray(notes), IDS[:1], IDS[:1], np.asarray(ends), "span",
        np.asarray(places), source,
    )  # fmt: skip


@pytest.mark.parametrize("longest", [2, 30])
@pytest.mark.parametrize("seed", range(10))
def test_the_best_answer_is_that_of_all_pairs(seed, longest, monkeypatch):
    monkeypatch.setattr(spans, "LONGEST_ANSWER", longest)
    notes = asked([(0, 4), (2, 6), (4, 7)], [])
    logits = np.random.default_rng(seed).normal(size=(len(notes.tokens), 2)).astype(np.float32)
    best, none = (-np.inf, None), np.inf
    for begin, end in itertools.pairwise(notes.offsets.tolist()):
        none = min(none, logits[begin].sum())
        for a, b in itertools.product(range(begin + 2, end), repeat=2):
            if a <= b < a + longest:
                best = max(best, (logits[a, 0] + logits[b, 1], (notes.spans[a, 0], notes.spans[b, 1])))
    chosen, margins = spans.best_answers(notes, logits)
    assert chosen.tolist() == [list(best[1])] and margins[0] == pytest.approx(best[0] - none, rel=1e-5)


def test_a_question_without_a_context_has_no_answer():
    notes = asked([(0, 0)], [])
    chosen, margins = spans.best_answers(notes, np.ones((2, 2), np.float32))
    assert chosen.tolist() == [[0, 0]] and np.isfinite(margins[0]) and margins[0] < 0


def test_logits_that_are_not_finite_give_no_margin():
    notes = asked([(0, 3)], [])
    assert np.isnan(spans.best_answers(notes, np.full((5, 2), np.nan, np.float32))[1]).all()


def test_the_best_of_several_true_answers_counts():
    answers = np.asarray([[0, 5, 6, 0], [0, 5, 10, 0]])  # "b" and "b c d", without the article none of them has
    scores = [spans.score_answers(asked([(0, 7)], []), np.asarray([ends]), answers)[0] for ends in ((5, 10), (5, 8))]
    np.testing.assert_allclose(scores, [[1, 1], [0, 0.8]], rtol=1e-6)
    none = np.zeros((0, 4), np.int64)
    scores = [spans.score_answers(asked([(0, 7)], []), np.asarray([ends]), none)[0] for ends in ((0, 0), (5, 8))]
    np.testing.assert_array_equal(scores, [[1, 1], [0, 0]])


def test_questions_with_and_without_an_answer_are_told_apart():
    scores = np.asarray([[1, 1], [0, 0.5], [1, 1], [0, 0]], np.float32)
    ids = np.asarray(list("abcd"))
    p = Predictions("span", ("start", "end"), ids, ids, np.asarray([1, 1, 0, 0]), scores=scores)
    assert metrics.evaluate(p) == pytest.approx(
        {"exact": 0.5, "f1": 0.625, "exact_answerable": 0.5, "f1_answerable": 0.75, "none_found": 0.5, "n": 4}
    )
