"""Marked entities and questions on notes, from their files to their scores, with `configs/annotated.py`."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlora.data import builders
from jaxlora.eval import metrics
from jaxlora.eval.predictions import load

SENTINEL = "Zq7xWv9KpR"
DRUGS, REASONS = ("aspirin", "heparin", "insulin"), ("chest pain", "fever", "кашель")
ASKED = ("What drug was given?", "What was the reason?", "Was there a surgery?")


def note(rng, sentences):
    """A note that gives drugs for reasons, and where they are."""
    text, marked = f"{SENTINEL}. ", []
    for _ in range(sentences):
        for before, words, kind in (("He was given ", DRUGS, "Drug"), (" for ", REASONS, "Reason")):
            text += before
            word = rng.choice(words)
            marked.append((len(text), len(text) + len(word), kind))
            text += word
        text += rng.choice((".\n", ". He slept well. "))
    return text, marked


def write_n2c2(folder, count, rng):
    folder.mkdir(parents=True)
    for number in range(count):
        text, marked = note(rng, rng.randint(1, 4))
        lines = [f"T{i}\t{kind} {a} {b}\t{text[a:b]}\n" for i, (a, b, kind) in enumerate(marked, 1)]
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
        (folder / f"{number}.ann").write_text("".join(lines), encoding="utf-8")


def write_radqa(path, count, rng):
    data = []
    for number in range(count):
        text, marked = note(rng, 1)
        answers = [[{"text": text[a:b], "answer_start": a}] for a, b, _ in marked] + [[]]
        asked = [
            {"id": f"{number}-{i}", "question": question, "answers": found, "is_impossible": not found}
            for i, (question, found) in enumerate(zip(ASKED, answers, strict=True))
        ]
        data.append({"paragraphs": [{"document_id": str(number), "context": text, "qas": asked}]})
    path.write_text(json.dumps({"data": data}), encoding="utf-8")


# Most notes are longer than 64 tokens, so that entities are learned and found in chunks.
MARKED = {"data.length": 64, "batch_size": 2, "epochs": 4, "learning_rate": 0.02}
CONFIG = Path(__file__).parents[1] / "configs" / "annotated.py"


def flags(task, folder, base, **more):
    fields = {"base": base, "data.dir": folder / "data", "split.validation": 0.2, "dtype": "float32", "remat": "none"}
    fields |= {"batch_size": 4, "learning_rate": 0.01, "adapters.downstream.targets": "all-linear", **more}
    return [f"--config={CONFIG}:{task},lora", *(f"--config.{name}={value}" for name, value in fields.items())]


def run(small, task, folder, base, **more):
    parts = {part: folder / (part if task == "n2c2" else f"{part}.json") for part in ("train", "test")}
    steps = flags(task, folder, base, **more)
    paths = [f"--config.{part}={path}" for part, path in parts.items()]
    assert small.run("prepare", *steps, *paths, f"--workdir={folder / 'data'}") == 0
    assert small.run("train", *steps, f"--workdir={folder / 'run'}") == 0
    assert small.run("evaluate", f"--workdir={folder / 'run'}") == 0
    return folder


@pytest.fixture(scope="module")
def entities(small, small_base, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("n2c2"), random.Random(0)
    for part, count in (("train", 50), ("test", 20)):
        write_n2c2(folder / part, count, rng)
    return run(small, "n2c2", folder, small_base, **MARKED)


@pytest.fixture(scope="module")
def answers(small, small_base, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("radqa"), random.Random(0)
    for part, count in (("train", 60), ("test", 20)):
        write_radqa(folder / f"{part}.json", count, rng)
    return run(small, "radqa", folder, small_base, **{"data.length": 96, "epochs": 4})


def scores(folder):
    return json.loads((folder / "run" / "metrics-test.json").read_text())


def test_entities_are_learned(entities):
    values = scores(entities)
    assert values["f1"] > 0.5 and values["f1_Drug"] > 0.4 and values["n"] == 20
    p, split = load(entities / "run" / "predictions-test.npz"), builders.load(entities / "data", "n2c2").split("test")
    assert p.names == ("O", "B-Drug", "I-Drug", "B-Reason", "I-Reason")
    assert values["entities"] == len(p.truth) == sum(len(split[i]["label"]) for i in range(20))
    assert values == metrics.evaluate(p)
    assert [split[int(note)]["text"][a:b] in DRUGS for note, a, b, kind in p.truth] == [k == 0 for k in p.truth[:, 3]]


def test_answers_are_learned(answers):
    """Better than never to answer, which a third of the questions ask for."""
    values = scores(answers)
    assert values["f1"] > 0.6 and values["exact"] > 0.5 and values["f1_answerable"] > 0.4 and values["n"] == 60
    p = load(answers / "run" / "predictions-test.npz")
    assert p.labels.sum() == 40 == len(p.truth) and p.scores.shape == (60, 2)
    assert values == metrics.evaluate(p)


@pytest.mark.parametrize("kind", ["entities", "answers"])
def test_no_text_is_kept(kind, request):
    folder = request.getfixturevalue(kind) / "run"
    arrays = np.load(folder / "predictions-test.npz")
    for name in arrays.files:
        assert arrays[name].dtype.kind in "iuf" or name in ("about", "ids", "patients")
    words = [word.encode() for word in (SENTINEL, *DRUGS, *REASONS)]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(word in content for word in words), path
    assert not any(word in arrays[name].tobytes() for name in arrays.files for word in words)


def test_a_run_goes_on_and_refuses_other_labels(small, entities, tmp_path, refused):
    copy = tmp_path / "run"
    shutil.copytree(entities / "run", copy)
    before = (copy / "metrics-test.json").read_bytes()
    assert small.run("train", *flags("n2c2", entities, small.base, **MARKED), f"--workdir={copy}") == 0
    assert small.run("evaluate", f"--workdir={copy}") == 0
    assert (copy / "metrics-test.json").read_bytes() == before
    labels = "('Drug','Reason','Route')"
    other = flags("n2c2", entities, small.base, **{"datasets.n2c2.labels": labels})
    paths = [f"--config.{part}={entities / part}" for part in ("train", "test")]
    assert small.run("prepare", *other, *paths, f"--workdir={tmp_path / 'data'}") == 0
    config = json.loads((copy / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "data")
    (copy / "config.json").write_text(json.dumps(config))
    assert "was trained with other labels" in refused("evaluate", f"--workdir={copy}")


def test_what_has_no_score_a_note_is_not_predicted_or_merged(entities, tmp_path, refused):
    run, output = entities / "run", tmp_path / "out"
    (tmp_path / "new.csv").write_text("id,text\n1,a b\n")
    message = refused("predict", f"--workdir={run}", f"--input={tmp_path / 'new.csv'}", f"--output={output}")
    assert "marks parts of notes, which have no score each" in message
    message = refused("export-model", f"--workdir={run}", f"--output={output}")
    assert "marks parts of notes, which no merged model does" in message and not output.exists()


def test_its_adapter_is_exported_without_the_head(small, entities, tmp_path):
    assert small.run("export-adapter", f"--workdir={entities / 'run'}", f"--output={tmp_path / 'out'}") == 0
    assert b"score" not in (tmp_path / "out" / "adapter_model.safetensors").read_bytes()


def test_outcomes_of_notes_are_still_not_chunked(small, refused):
    flags = [*small.flags("lora"), "--config.data.long_notes=chunk"]
    assert "is for notes without labels" in refused("train", *flags, f"--workdir={small.folder / 'chunked'}")
