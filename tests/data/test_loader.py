"""Packed batches: every note once, nothing mixed up, the same again from a seed or a state."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from jaxlora.data.loader import Batches, max_segments, pack, row_length

LENGTHS = np.random.default_rng(0).integers(1, 65, 50)


def rows(batches) -> list[dict]:
    """The rows of all batches, those of a last incomplete batch included."""
    return [batches.rows[i] for i in range(len(batches.rows))]


def same(a, b) -> bool:
    return len(a) == len(b) and all(np.array_equal(x[n], y[n]) for x, y in zip(a, b, strict=True) for n in x)


def notes_of(rows) -> list[int]:
    return [int(n) - 1 for row in rows for n in row["notes"].ravel() if n]


@pytest.mark.parametrize("seed", [0, None])
def test_every_note_is_seen_once_an_epoch(numbered_notes, seed):
    batches = Batches(numbered_notes(LENGTHS), 64, 4, epochs=3, seed=seed)
    starts = batches.rows.starts
    for start, end in itertools.pairwise(starts):
        epoch = [batches.rows[i] for i in range(start, end)]
        assert sorted(notes_of(epoch)) == list(range(50))
    assert len(starts) == 4


@pytest.mark.parametrize("seed", [0, None])
def test_rows_hold_whole_notes_with_their_segments_and_positions(numbered_notes, seed):
    for row in rows(Batches(numbered_notes(LENGTHS), 64, 4, seed=seed)):
        assert {name: x.shape for name, x in row.items()} == {
            **dict.fromkeys(("tokens", "segments", "positions"), (64,)),
            "notes": (4,),
        }
        end = 0
        for segment, note in enumerate(row["notes"][row["notes"] > 0] - 1, 1):
            (where,) = np.nonzero(row["segments"] == segment)
            np.testing.assert_array_equal(where, np.arange(end, end + LENGTHS[note]))  # side by side, complete
            np.testing.assert_array_equal(row["tokens"][where], 100 * note + np.arange(LENGTHS[note]))
            np.testing.assert_array_equal(row["positions"][where], np.arange(LENGTHS[note]))
            end += LENGTHS[note]
        for name in ("tokens", "segments", "positions"):
            assert not np.any(row[name][end:])


def test_row_holds_no_more_notes_than_its_segments(numbered_notes):
    short = rows(Batches(numbered_notes([3] * 30), 64, 2))
    assert max_segments(64) == 4 and max_segments(8) == 1
    assert Counter(len(notes_of([row])) for row in short) == {4: 7, 2: 1}


@pytest.mark.parametrize("rng", [np.random.default_rng(1), None])
def test_packing_fills_rows_of_realistic_notes(rng):
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.8, 4000), 8, 512).astype(int)
    plan = pack(lengths, 512, rng)
    filled = np.add.reduceat(lengths[plan.pieces], plan.rows[:-1])
    assert filled.max() <= 512
    assert filled.sum() / (512 * len(plan)) >= 0.95


def test_packing_takes_the_row_that_is_left_with_the_least_room():
    plan = pack(np.asarray([40, 30, 20, 34, 24]), 64, None)
    assert [plan.pieces[a:b].tolist() for a, b in itertools.pairwise(plan.rows)] == [[0, 2], [1, 3], [4]]
    plan = pack(np.asarray([40, 30, 34, 24]), 64, None)
    assert [plan.pieces[a:b].tolist() for a, b in itertools.pairwise(plan.rows)] == [[0, 3], [1, 2]]


def test_order_follows_from_the_seed_and_differs_between_epochs(numbered_notes):
    def run(seed):
        return Batches(numbered_notes(LENGTHS), 64, 4, epochs=2, seed=seed)

    assert same(list(run(0)), list(run(0)))
    assert not same(list(run(0)), list(run(1)))
    first, second = (
        notes_of([run(0).rows[i] for i in range(*ends)]) for ends in itertools.pairwise(run(0).rows.starts)
    )
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_state_gives_the_batches_that_were_to_come(numbered_notes, done):
    batches = Batches(numbered_notes(LENGTHS), 64, 4, epochs=2)
    iterator = iter(batches)
    for _ in range(done):
        next(iterator)
    state = iterator.get_state()
    coming = list(iterator)
    assert len(coming) == len(batches) - done
    resumed = iter(Batches(numbered_notes(LENGTHS), 64, 4, epochs=2))
    resumed.set_state(state)
    assert same(list(resumed), coming)


def test_training_batches_are_full_and_counted(numbered_notes):
    batches = Batches(numbered_notes(LENGTHS), 64, 4, epochs=3)
    made = list(batches)
    assert len(made) == len(batches) == len(batches.rows) // 4 and len(batches.rows) % 4
    assert all(batch["tokens"].shape == (4, 64) and batch["segments"].any(axis=1).all() for batch in made)


def test_evaluation_keeps_every_note_and_fills_the_last_batch_with_empty_rows(numbered_notes):
    batches = Batches(numbered_notes(LENGTHS), 64, 4, seed=None)
    made = list(batches)
    assert sorted(notes_of(made)) == list(range(50))
    assert len(made) == len(batches) == -(-len(batches.rows) // 4)
    assert {batch["tokens"].shape for batch in made} == {(4, 64)}
    empty = ~made[-1]["segments"].any(axis=1)
    assert empty.sum() == 4 * len(made) - len(batches.rows) > 0
    assert not any(np.any(made[-1][name][empty]) for name in made[-1])


def test_fewer_rows_than_a_batch_still_train(numbered_notes):
    (batch,) = Batches(numbered_notes([5, 9]), 64, 4)
    assert sorted(notes_of([batch])) == [0, 1] and batch["tokens"].shape == (4, 64)


@pytest.mark.parametrize("seed", [0, None])
def test_a_host_builds_its_own_rows_of_the_same_batches(numbered_notes, seed):
    labels = np.random.default_rng(0).integers(0, 7, len(LENGTHS))
    whole, part = (
        Batches(numbered_notes(LENGTHS, labels), 64, 4, labels=7, seed=seed, own=own) for own in (None, [1, 3])
    )
    assert len(whole) == len(part) > 1
    for number, (batch, own) in enumerate(zip(whole, part, strict=True)):
        for name, rows in batch.items():
            np.testing.assert_array_equal(own[name][[1, 3]], rows[[1, 3]])
            assert own[name].shape == rows.shape and own[name].dtype == rows.dtype
        assert not own["tokens"][[0, 2]].any() and not own["segments"][[0, 2]].any()
        np.testing.assert_array_equal(own["notes"], batch["notes"])
        assert part.lengths(number).sum() == (batch["segments"] > 0).sum()


@pytest.mark.parametrize("seed", [0, None])
def test_one_label_goes_with_its_note(numbered_notes, seed):
    labels = np.random.default_rng(1).integers(1, 7, 50)
    seen = 0
    for batch in Batches(numbered_notes(LENGTHS, labels), 64, 4, labels=7, seed=seed):
        real = batch["notes"] > 0
        np.testing.assert_array_equal(batch["labels"][real], labels[batch["notes"][real] - 1])
        assert not np.any(batch["labels"][~real]) and batch["labels"].dtype == np.int32
        seen += real.sum()
    assert seen > 40


@pytest.mark.parametrize("seed", [0, None])
def test_several_labels_go_with_their_note(numbered_notes, seed):
    rng = np.random.default_rng(1)
    labels = [rng.choice(5, rng.integers(4), replace=False) for _ in LENGTHS]
    seen = 0
    for batch in Batches(numbered_notes(LENGTHS, labels), 64, 4, labels=5, seed=seed):
        assert batch["labels"].shape == (4, 4, 5) and batch["labels"].dtype == np.float32
        for place, note in np.ndenumerate(batch["notes"]):
            assert set(np.nonzero(batch["labels"][place])[0]) == (set(labels[note - 1]) if note else set())
            seen += note > 0
    assert seen > 40


def test_language_model_batches_have_no_labels(numbered_notes):
    assert "labels" not in next(iter(Batches(numbered_notes(LENGTHS), 64, 4)))


def test_chunks_of_a_note_are_segments_of_their_own(numbered_notes):
    notes = dataclasses.replace(numbered_notes([60, 60, 10]), notes=np.asarray([0, 0, 1]))
    found = rows(Batches(notes, 64, 1, seed=None))
    assert notes_of(found) == [0, 0, 1]


def tagged(notes, kind, labels):
    return dataclasses.replace(notes, kind=kind, labels=labels)


@pytest.mark.parametrize("seed", [0, None])
def test_the_label_of_a_token_goes_with_it_and_padding_has_none(numbered_notes, seed):
    notes = numbered_notes(LENGTHS)
    notes = tagged(notes, "tokens", notes.tokens % 7 - 1)
    for batch in Batches(notes, 64, 4, labels=7, seed=seed):
        real = batch["segments"] > 0
        assert batch["labels"].shape == (4, 64) and batch["labels"].dtype == np.int32
        np.testing.assert_array_equal(batch["labels"], np.where(real, batch["tokens"] % 7 - 1, -1))
        assert not real.all()


@pytest.mark.parametrize("seed", [0, None])
def test_the_ends_of_an_answer_are_places_in_the_row(numbered_notes, seed):
    ends = np.stack([LENGTHS // 3, LENGTHS - 1], axis=1)
    seen = 0
    for batch in Batches(tagged(numbered_notes(LENGTHS), "span", ends), 64, 4, labels=2, seed=seed):
        assert batch["labels"].shape == (4, 4, 2) and batch["labels"].dtype == np.int32
        for row, segment in zip(*np.nonzero(batch["notes"]), strict=True):
            note = batch["notes"][row, segment] - 1
            assert batch["tokens"][row, batch["labels"][row, segment]].tolist() == (100 * note + ends[note]).tolist()
            seen += 1
        assert (batch["labels"][batch["notes"] == 0] == -1).all()
    assert seen > 40


def test_rows_that_fill_a_batch_have_no_labels(numbered_notes):
    notes = numbered_notes([5, 9])
    (batch,) = Batches(tagged(notes, "tokens", np.ones(14, np.int64)), 64, 4, labels=3)
    assert (batch["labels"] >= 0).sum() == 14 and (batch["labels"][1:] == -1).all()


@pytest.mark.parametrize("kind", ["tokens", "span"])
def test_to_predict_no_label_is_needed(numbered_notes, kind):
    notes = numbered_notes(LENGTHS)
    notes = tagged(notes, kind, np.zeros((len(notes.tokens) if kind == "tokens" else 50, 2), np.int64))
    assert "labels" not in next(iter(Batches(notes, 64, 4, seed=None)))


def test_the_pieces_of_a_row_are_told_in_their_order(numbered_notes):
    batches = Batches(numbered_notes(LENGTHS), 64, 4, epochs=2)
    for number in range(len(batches.rows)):
        row, pieces = batches.rows[number], batches.rows.pieces(number)
        assert (row["notes"][row["notes"] > 0] - 1).tolist() == pieces.tolist()


def test_a_row_has_room_for_the_virtual_tokens_of_its_notes():
    assert [row_length(*sizes) for sizes in ((100, 0), (100, 7), (128, 0), (128, 1), (512, 20), (128, 128))] == [
        100, 107, 128, 256, 640, 256,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, None])
def test_every_note_is_behind_its_virtual_tokens(numbered_notes, seed):
    batches = Batches(numbered_notes(LENGTHS), 64, 4, seed=seed, virtual=3)
    found = rows(batches)
    assert sorted(notes_of(found)) == list(range(50))
    for row in found:
        assert row["tokens"].shape == (67,) and len(row["notes"]) == max_segments(67)
        for segment, note in enumerate(row["notes"][row["notes"] > 0] - 1, 1):
            where = row["segments"] == segment
            expected = [-1, -2, -3, *(100 * note + np.arange(LENGTHS[note]))]
            np.testing.assert_array_equal(row["tokens"][where], expected)
            np.testing.assert_array_equal(row["positions"][where], np.arange(3 + LENGTHS[note]))
    counted = [batches.lengths(number) for number in range(len(batches))]
    assert set(np.concatenate(counted)) <= set(LENGTHS)


@pytest.mark.parametrize("kind", ["tokens", "span"])
def test_labels_stay_with_their_tokens_behind_virtual_ones(numbered_notes, kind):
    lengths = LENGTHS[:12]
    of_tokens = np.arange(lengths.sum())
    ends = np.stack([np.zeros_like(lengths), lengths - 1], axis=1)
    notes = dataclasses.replace(numbered_notes(lengths, of_tokens if kind == "tokens" else ends), kind=kind)
    for row in rows(Batches(notes, 64, 4, 2, seed=None, virtual=3)):
        if kind == "tokens":
            assert (row["labels"][row["tokens"] < 0] == -1).all()
            there = row["labels"] >= 0
            np.testing.assert_array_equal(notes.tokens[row["labels"][there]], row["tokens"][there])
            assert there.sum() == ((row["segments"] > 0) & (row["tokens"] >= 0)).sum()
        else:
            for (first, last), note in zip(row["labels"], row["notes"], strict=True):
                if note:
                    found = row["tokens"][[first, last]]
                    assert found.tolist() == [100 * (note - 1), 100 * (note - 1) + lengths[note - 1] - 1]
