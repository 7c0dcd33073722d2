"""What becomes of a note in a corpus: cleaned as asked, each text once, on its side of the split."""

import csv
from collections import Counter

import pytest

from jaxlora.config import default
from jaxlora.data import corpus
from jaxlora.data.deid import note_hash
from jaxlora.data.examples import keyed
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.synthetic import COLUMNS
from jaxlora.errors import UserError

KEY = bytes(32)
NOTES = (  # row, patient, category, error, text
    (1, 10, "Radiology", "", "Seen by [**Name (STitle) 12**] on\n[**2150-1-2**]."),
    (2, 10, "Nursing", "1", "wrong patient"),
    (3, 11, "Nursing", "", "stable"),
    (4, 12, "Nursing", "", "stable"),
    (5, 12, "Nursing", "", " \n"),
    (6, 13, "Radiology", "", "two\r\nlines   of ___ text"),
    (7, "", "Radiology", "", "nobody's"),
)


@pytest.fixture
def release(tmp_path):
    with (tmp_path / "NOTEEVENTS.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS["NOTEEVENTS"].split(), restval="")
        writer.writeheader()
        for row, patient, category, error, text in NOTES:
            writer.writerow(
                {"ROW_ID": row, "SUBJECT_ID": patient, "CATEGORY": category, "ISERROR": error, "TEXT": text}
            )
    return Mimic3(tmp_path)


def made(release, recipe, split_of=lambda _: "train"):
    flow, finish = Counter(), corpus.Finish(recipe, KEY)
    results = [finish(note) for note in corpus.notes(release, recipe, split_of, flow)]
    flow.update(result for result in results if isinstance(result, str))
    return [result for result in results if not isinstance(result, str)], flow


def fields(**changes):
    fields = default().corpus
    fields.update(changes)
    return fields


@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        ({}, "Seen by [**Name (STitle) 12**] on\n[**2150-1-2**].", "two\nlines   of ___ text"),
        ({"deid": "normalise"}, "Seen by ___ on\n___.", "two\nlines   of ___ text"),
        ({"deid": "drop"}, "Seen by   on\n .", "two\nlines   of   text"),
        ({"join_lines": True}, "Seen by Name (STitle) 12 on 2150-1-2 .", "two lines of ___ text"),
        ({"join_lines": True, "deid": "drop"}, "Seen by on .", "two lines of text"),
    ],
)
def test_marks_and_lines(release, changes, first, last):
    notes, _ = made(release, corpus.recipe(fields(**changes), "correct"))
    assert (notes[0].text, notes[-1].text) == (first, last)


def test_what_is_left_out_and_why(release):
    notes, flow = made(release, corpus.recipe(fields(), "correct"))
    assert [note.id for note in notes] == [keyed(KEY, f"note:{n}") for n in (1, 3, 6)]
    assert [note.patient for note in notes] == [keyed(KEY, f"patient:{n}") for n in (10, 11, 13)]
    assert flow == {
        "notes: read": 7,
        "notes: flagged as an error": 1,
        "notes: the same text again": 1,
        "notes: no text": 1,
        "notes: no patient": 1,
    }


def test_the_published_corpus_has_every_note_and_is_split_by_note(release):
    asked = []
    notes, _ = made(release, corpus.recipe(fields(), "paper"), lambda what: asked.append(what) or "test")
    assert [note.text for note in notes][1:4] == ["wrong patient", "stable", "stable"]
    assert notes[0].text == "Seen by Name (STitle) 12 on 2150-1-2 ."
    assert asked[0] == "note:1" and all(note.split == "test" for note in notes)


def test_a_patient_of_no_published_list_trains(release):
    notes, _ = made(release, corpus.recipe(fields(), "correct"), {"10": "test"}.get)
    assert [note.split for note in notes] == ["test", "train", "train"]


def test_what_an_audit_found_is_left_out(release, tmp_path):
    listed = tmp_path / "exclude.txt"
    # The hash sees through the marks of another release, its case and its lines.
    listed.write_text(note_hash("SEEN by ___ on ___.") + "\n" + note_hash("of another corpus") + "\n")
    for mode in ("correct", "paper"):
        notes, flow = made(release, corpus.recipe(fields(exclude=str(listed)), mode))
        assert flow["notes: excluded"] == 1 and all("Seen by" not in note.text for note in notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deid": "remove"}, "corpus.deid: no 'remove'"),
        ({"split": "patients"}, "config.corpus.split: no 'patients'; did you mean 'patient'"),
        ({"exclude": "absent.txt"}, "config.corpus.exclude: absent.txt: no such file"),
    ],
)
def test_wrong_fields(changes, message):
    with pytest.raises(UserError, match=message):
        corpus.recipe(fields(**changes), "correct")


def test_a_list_of_something_else_is_not_quoted(tmp_path):
    (tmp_path / "ids.txt").write_text("0123456789abcdef\nSentinel9Q\n")
    with pytest.raises(UserError, match="line 2: not a hash") as caught:
        corpus.recipe(fields(exclude=str(tmp_path / "ids.txt")), "correct")
    assert "Sentinel" not in str(caught.value)
