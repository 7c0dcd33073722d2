"""Files of n2c2, i2b2, RadQA and MedNLI to examples, written here as their owners give them out."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxlora.config import native
from jaxlora.data import builders
from jaxlora.data import native as reader
from jaxlora.data.builders import Work
from jaxlora.data.examples import keyed, split_of
from jaxlora.errors import UserError

KEY, SECRET = b"k" * 32, "Zq7xWv9KpR"
SHARES = ConfigDict({"validation": 0.3, "test": 0.2, "seed": 0})
NOTE = f"On admission: {SECRET} λόγος 5µg.\nHe took aspirin\n  81 mg for chest pain.\n"


def read(format, folder, **fields):
    form = reader.FORMATS[format].folder
    parts = {part: str(folder / (part if form else f"{part}.json{'' if format == 'radqa' else 'l'}")) for part in PARTS}
    return reader.read("set", native(format, **parts | fields), SHARES, KEY)


PARTS = ("train", "test")


def write(folder, name, text, annotations, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_bytes(text.encode())
    (folder / f"{name}{suffix}").write_bytes(annotations.encode())


def brat(text, *entities) -> str:
    """The lines of brat for (type, words); a word that is broken over lines is in fragments, as brat writes it."""
    lines = []
    for number, (kind, words) in enumerate(entities, 1):
        match = re.search(re.sub(r" ", r"\\s+", re.escape(words).replace("\\ ", " ")), text)
        parts = [(m.start() + match.start(), m.end() + match.start()) for m in re.finditer(r"[^\n]+", match[0])]
        lines.append(f"T{number}\t{kind} {';'.join(f'{a} {b}' for a, b in parts)}\t{words}\n")
    return "".join(lines)


@pytest.fixture
def n2c2(tmp_path):
    marked = brat(NOTE, ("Drug", "aspirin 81 mg"), ("Reason", "chest pain"), ("Drug", "λόγος"))
    assert ";" in marked
    for part in PARTS:
        write(tmp_path / part, "1", NOTE, marked + "R1\tReason-Drug Arg1:T2 Arg2:T1\n#1\tNote T1\tx\n", ".ann")
    write(tmp_path / "train", "2", "No drug.\r\n", "\r\n", ".ann")
    return tmp_path


@pytest.fixture
def i2b2(tmp_path):
    marked = (
        'c="Chest  pain." 3:3 3:4||t="problem"\r\nc="λόγος" 1:3 1:3||t="test"\nc="aspirin 81" 2:2 3:0||t="treatment"'
    )
    for part in PARTS:
        (tmp_path / part / "concept").mkdir(parents=True)
        write(tmp_path / part, "a", NOTE, marked, ".con")
        (tmp_path / part / "a.con").rename(tmp_path / part / "concept" / "a.con")
    return tmp_path


def test_n2c2(n2c2):
    task, examples = read("n2c2", n2c2)
    assert (task.name, task.kind, task.labels) == ("set", "tokens", ("Drug", "Reason"))
    assert task.outputs == ("O", "B-Drug", "I-Drug", "B-Reason", "I-Reason")
    found = {(example.split == "test", example.text): example for example in examples}
    assert len(found) == 3
    for test in (True, False):
        label = found[test, NOTE].label
        assert label.dtype == np.int64 and [(NOTE[a:b], kind) for a, b, kind in label] == [
            ("aspirin\n  81 mg", 0),
            ("chest pain", 1),
            ("λόγος", 0),
        ]
    assert found[False, "No drug.\r\n"].label.shape == (0, 3)


def test_blanks_at_the_ends_of_an_entity_are_left_out(n2c2):
    start = NOTE.index(" aspirin")
    (n2c2 / "train" / "1.ann").write_text(f"T1\tDrug {start} {start + 9}\t aspirin\n")
    marked = [e.label for e in read("n2c2", n2c2, labels=("Drug", "Reason"))[1] if e.split != "test" and len(e.label)]
    assert [NOTE[a:b] for a, b, _ in marked[0]] == ["aspirin"]


def test_i2b2(i2b2):
    task, examples = read("i2b2", i2b2)
    assert (task.kind, task.labels) == ("tokens", ("problem", "test", "treatment"))
    for example in examples:
        found = [(NOTE[a:b], task.labels[kind]) for a, b, kind in example.label]
        assert found == [("chest pain.", "problem"), ("λόγος", "test"), ("aspirin\n  81", "treatment")]


def test_declared_labels_keep_their_order(n2c2):
    task, examples = read("n2c2", n2c2, labels=("Route", "Reason", "Drug"))
    assert task.labels == ("Route", "Reason", "Drug")
    assert {kind for example in examples for _, _, kind in example.label} == {1, 2}


def test_ids_are_keyed_and_of_their_part(n2c2):
    examples = list(read("n2c2", n2c2)[1])
    assert {example.id for example in examples} == {keyed(KEY, raw) for raw in ("train:1", "train:2", "test:1")}
    assert len({example.patient for example in examples}) == 3


def test_a_share_of_the_training_documents_validates_unless_there_is_a_part_for_it(tmp_path):
    for name in range(40):
        for part in PARTS:
            write(tmp_path / part, name, NOTE, brat(NOTE, ("Drug", "aspirin")), ".ann")
    apart = {str(name) for name in range(40) if split_of(f"train:{name}", **SHARES) == "validation"}
    examples = list(read("n2c2", tmp_path)[1])
    assert Counter(e.split for e in examples) == {"train": 40 - len(apart), "validation": len(apart), "test": 40}
    assert {e.id for e in examples if e.split == "validation"} == {keyed(KEY, f"train:{name}") for name in apart}
    given = list(read("n2c2", tmp_path, validation=str(tmp_path / "test"))[1])
    assert Counter(e.split for e in given) == {"train": 40, "validation": 40, "test": 40}
    assert [e for e in list(read("n2c2", tmp_path)[1]) if e.split == "train"][0].id in {e.id for e in given}


CONTEXT = f"FINDINGS: {SECRET}. No λόγος. A nodule of 5 mm."


def question(name, text, *answers, **fields):
    found = [{"text": answer, "answer_start": CONTEXT.index(answer)} for answer in answers]
    return {"id": name, "question": text, "answers": found, "is_impossible": not answers} | fields


def reports(path, *questions, context=CONTEXT, entries=1):
    paragraph = {"document_id": "r1", "context": context, "qas": list(questions)}
    path.write_text(json.dumps({"version": "1", "data": [{"paragraphs": [paragraph]}] * entries}))


@pytest.fixture
def radqa(tmp_path):
    asked = question("q1", "How large?", "5 mm", "A nodule of 5 mm"), question("q2", "Any λόγος?"), question(3, "x?")
    for part in PARTS:
        reports(tmp_path / f"{part}.json", *asked)
    return tmp_path


def test_radqa(radqa):
    task, examples = read("radqa", radqa)
    assert (task.kind, task.labels, task.outputs) == ("span", (), ("start", "end"))
    first, second, _ = (example for example in examples if example.split == "test")
    assert first.text == f"How large?\n{CONTEXT}" and second.text == f"Any λόγος?\n{CONTEXT}"
    assert [first.text[a:b] for a, b in first.label] == [CONTEXT, "5 mm", "A nodule of 5 mm"]
    assert [second.text[a:b] for a, b in second.label] == [CONTEXT]
    assert first.id == keyed(KEY, "test:q1") and first.patient == second.patient


def test_mednli(tmp_path):
    rows = [("p", "entailment"), ("p", "contradiction"), ("q é", "neutral")]
    for part in PARTS:
        with (tmp_path / f"{part}.jsonl").open("w") as file:
            for number, (premise, label) in enumerate(rows):
                row = {"pairID": f"{number}", "sentence1": premise, "sentence2": "h", "gold_label": label, "x": 1}
                file.write(json.dumps(row) + "\n")
    task, examples = read("mednli", tmp_path)
    assert (task.kind, task.labels) == ("multiclass", ("contradiction", "entailment", "neutral"))
    found = [example for example in examples if example.split == "test"]
    assert [example.text for example in found] == ["p\nh", "p\nh", "q é\nh"]
    assert [example.label for example in found] == [1, 0, 2]
    assert found[0].patient == found[1].patient != found[2].patient
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"pairID": "9", "sentence1": " ", "sentence2": "h", "gold_label": "neutral"}\n')
    with pytest.raises(UserError, match="train.jsonl, column 'sentence1', row 4: no text; fill the cell"):
        read("mednli", tmp_path)


@pytest.mark.parametrize("format", ["n2c2", "radqa"])
def test_prepared_and_read_again(format, request, tmp_path):
    folder = request.getfixturevalue(format)
    validation = folder / ("test" if format == "n2c2" else "test.json")
    task, examples = read(format, folder, validation=str(validation))
    examples = list(examples)
    builders.build(tmp_path / "data", Work(task, examples))
    prepared = builders.load(tmp_path / "data", "set")
    assert prepared.task == task
    for split, count in prepared.splits.items():
        wanted, found = [e for e in examples if e.split == split], prepared.split(split)
        assert len(wanted) == count
        for one, other in zip(wanted, [found[i] for i in range(count)], strict=True):
            assert (one.id, one.patient, one.text) == (other["id"], other["patient"], other["text"])
            assert one.label.shape == other["label"].shape
            np.testing.assert_array_equal(one.label, other["label"])


def refuse(format, folder, message, **fields):
    with pytest.raises(UserError) as error:
        read(format, folder, **fields)
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value) and SECRET not in str(error.value)


SECRETLY = "the annotation's text is not what the note has there; copy the two files"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"T9\tDrug 0 12\t{SECRET}", f"train/1.ann, line 2: {SECRETLY}"),
        (f"T9\tDrug 0 9000\t{SECRET}", "train/1.ann, line 2: offsets outside the note of 76 characters"),
        (f"T9\tDrug 5 5\t{SECRET}", "train/1.ann, line 2: offsets outside the note"),
        (f"T9\tDrug 0 {'9' * 5000}\t{SECRET}", "train/1.ann, line 2: neither an entity nor another line of brat"),
        ("T9\tDrug 13 14\t ", "train/1.ann, line 2: an annotation of blanks alone; correct its offsets"),
        (f"T9\tDrug\t{SECRET}", "train/1.ann, line 2: neither an entity nor another line of brat"),
        (f"{SECRET}", "train/1.ann, line 2: neither an entity nor another line of brat"),
    ],
)
def test_a_line_of_n2c2_that_does_not_fit(n2c2, line, message):
    (n2c2 / "train" / "1.ann").write_text(f"{brat(NOTE, ('Drug', 'aspirin'))}{line}\n")
    refuse("n2c2", n2c2, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f'c="{SECRET}" 1:0 1:1||t="test"', f"a.con, line 1: {SECRETLY}"),
        (f'c="{SECRET}" 1:99 1:99||t="test"', "a.con, line 1: word 1:99 is not in the note"),
        (f'c="{SECRET}" 0:0 0:0||t="test"', "a.con, line 1: word 0:0 is not in the note"),
        (f'c="{SECRET}" 9:0 9:0||t="test"', "a.con, line 1: word 9:0 is not in the note"),
        (f'c="{SECRET}" 2:1 1:1||t="test"', "a.con, line 1: it ends before it begins"),
        (f'c="{SECRET}" 1:{"9" * 5000} 1:0||t="test"', "a.con, line 1: not a concept"),
        (f'c="{SECRET}" 1:0||t="test"', "a.con, line 1: not a concept"),
    ],
)
def test_a_line_of_i2b2_that_does_not_fit(i2b2, line, message):
    (i2b2 / "train" / "concept" / "a.con").write_text(line)
    refuse("i2b2", i2b2, message)


def test_notes_and_annotations_come_in_pairs(n2c2):
    (n2c2 / "train" / "3.txt").write_text(SECRET)
    refuse("n2c2", n2c2, "train/3.txt: its .ann file is missing; add it, or remove this one")
    (n2c2 / "train" / "3.txt").rename(n2c2 / "train" / "4.ann")
    refuse("n2c2", n2c2, "train/4.ann: its .txt file is missing; add it, or remove this one")


def test_one_name_in_two_folders(i2b2):
    write(i2b2 / "train" / "copy", "a", NOTE, "", ".con")
    refuse("i2b2", i2b2, "a.(con|txt): .*train.* has a file of this name too; keep one of them")


def test_what_is_not_text(n2c2):
    (n2c2 / "train" / "1.txt").write_bytes(b"one\ntwo\xff\n")
    refuse("n2c2", n2c2, "train/1.txt, line 2: not valid UTF-8; save the file in UTF-8")
    (n2c2 / "train" / "1.txt").write_bytes(b" \n")
    refuse("n2c2", n2c2, "train/1.txt: the note is empty")


@pytest.mark.parametrize(("format", "suffix"), [("n2c2", ".ann"), ("i2b2", ".con")])
def test_a_byte_order_mark_is_no_character_of_the_note(format, suffix, request):
    folder = request.getfixturevalue(format)
    expected = list(read(format, folder)[1])
    for path in (*folder.rglob("*.txt"), *folder.rglob(f"*{suffix}")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for one, other in zip(expected, read(format, folder)[1], strict=True):
        assert one.text == other.text and np.array_equal(one.label, other.label)
    for path in folder.rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbfa\n\xff")
    refuse(format, folder, ".txt, line 2: not valid UTF-8")


def test_labels_that_training_does_not_have(n2c2):
    (n2c2 / "test" / "1.ann").write_text(brat(NOTE, ("Route", "aspirin")))
    refuse("n2c2", n2c2, "test/1.ann: a label outside the 2 known ones; correct it, or declare it in labels")
    refuse("n2c2", n2c2, "datasets.set.labels: a label is declared twice", labels=("Drug", "Drug"))


def test_folders_and_formats_that_do_not_exist(n2c2, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse("n2c2", n2c2, "empty: no .txt file in this folder", train=str(tmp_path / "empty"))
    refuse("n2c2", n2c2, "datasets.set.train: not set; a n2c2 dataset needs it", train="")
    refuse("n2c2", n2c2, "datasets.set.test: .*nowhere is not a folder", test=str(tmp_path / "nowhere"))
    refuse("radqa", n2c2, "datasets.set.train: .*train is not a file", train=str(n2c2 / "train"))
    with pytest.raises(UserError, match="datasets.set.format: no 'n2c'; did you mean 'n2c2'?"):
        reader.read("set", native("n2c", "a", "b"), SHARES, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": [{"text": SECRET, "answer_start": 0}]}, "an answer's text is not in the context"),
        ({"answers": [{"text": "FIND", "answer_start": -1}]}, "an answer's text is not in the context"),
        ({"answers": [{"text": " ", "answer_start": 9}]}, "an answer's text is not in the context"),
        ({"answers": [{"text": "FIND"}]}, "no field 'answer_start', or one of another type"),
        ({"is_impossible": True}, "is_impossible and answers disagree"),
        ({"answers": []}, "is_impossible and answers disagree"),
        ({"question": 5}, "no field 'question', or one of another type"),
        ({"question": " "}, "the question or its context is empty"),
        ({"question": f"{SECRET}\ud800"}, "half of a surrogate pair"),
        ({"id": f"{SECRET}\udfff"}, "half of a surrogate pair"),
    ],
)
def test_a_question_that_does_not_fit(radqa, change, message):
    reports(radqa / "test.json", question("q0", "x?"), question("q1", "How large?", "5 mm", **change))
    refuse("radqa", radqa, f"test.json, entry 1, paragraph 1, question 2: {message}")


def test_half_a_character(radqa, tmp_path):
    reports(radqa / "test.json", question("q0", "x?"), context=f"{SECRET} \ud83d")
    refuse("radqa", radqa, "test.json, entry 1, paragraph 1: half of a surrogate pair, which is no character; copy")
    reports(radqa / "test.json", question("q0", "\U0001fac1?"))  # a whole pair, in JSON
    assert any(example.text.startswith("\U0001fac1") for example in read("radqa", radqa)[1])
    for column in ("pairID", "sentence1", "sentence2", "gold_label"):
        row = {"pairID": "1", "sentence1": "p", "sentence2": "h", "gold_label": "a"} | {column: f"{SECRET}\ud800"}
        for part in PARTS:
            (tmp_path / f"{part}.jsonl").write_text(json.dumps(row))
        refuse("mednli", tmp_path, f"train.jsonl, column '{column}', row 1: not valid UTF-8")


def test_files_that_are_not_radqa(radqa):
    reports(radqa / "test.json", question("q0", "x?"), question("q0", "y?"))
    refuse("radqa", radqa, "test.json, entry 1, paragraph 1, question 2: an earlier one has the same id")
    (radqa / "test.json").write_text('{"data": [{"paragraphs": [')
    refuse("radqa", radqa, "test.json: malformed JSON; copy it again")
    (radqa / "test.json").write_text("[]")
    refuse("radqa", radqa, "test.json: no field 'data', or one of another type")
