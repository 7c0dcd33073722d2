"""A BERT from its directory to its scores, with `configs/encoders.py`: trained whole, by LoRA, and to mark entities."""

import csv
import json
import random
import re
from pathlib import Path

import pytest

from jaxlora.eval.predictions import load

CONFIGS = Path(__file__).parents[1] / "configs"
WORDS = ("snow", "rain", "boat")
QUICK = {"data.length": 24, "batch_size": 4, "accumulate": 2, "epochs": 6, "learning_rate": 0.005}


@pytest.fixture(scope="module")
def learnable(small, tmp_path_factory):
    """Notes whose labels their words tell, prepared by kind: `folder / kind`."""
    folder, rng = tmp_path_factory.mktemp("encoders"), random.Random(0)
    with (folder / "notes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "patient", "text", "binary", "multiclass", "multilabel"])
        for i in range(120):
            said = [word for word in WORDS if rng.random() < 0.5] or ["snow"]
            text = " ".join(rng.sample([*said, "the", "sea", "and", "dog", "day", "was", "no"], k=len(said) + 7))
            writer.writerow([i, i, text, "snow" in said, said[0], ",".join(said)])
    for kind in ("binary", "multiclass", "multilabel"):
        flags = [f"--config={CONFIGS / 'table.py'}:lora", f"--config.path={folder / 'notes.csv'}"]
        flags += [f"--config.kind={kind}", f"--config.columns.label={kind}", "--config.split.test=0.3"]
        assert small.run("prepare", *flags, f"--workdir={folder / kind}") == 0
    return folder


def flags(row, folder, base, **more):
    fields = {"base": base, "data.dir": folder, "data.name": "outcome", **QUICK, **more}
    return [f"--config={CONFIGS / 'encoders.py'}:mor,{row}", *(f"--config.{k}={v}" for k, v in fields.items())]


def trained(small, steps, workdir):
    assert small.run("train", *steps, f"--workdir={workdir}") == 0
    assert small.run("evaluate", f"--workdir={workdir}") == 0
    return json.loads((workdir / "metrics-test.json").read_text())


@pytest.mark.parametrize(("row", "kind"), [("lora", "binary"), ("full", "multilabel")])
def test_outcomes_are_learned(small, small_bert, learnable, stored, tmp_path, row, kind):
    more = {"adapters.downstream.targets": "all-linear"} if row == "lora" else {}
    values = trained(small, flags(row, learnable / kind, small_bert, **more), tmp_path / "run")
    assert values["auroc"] > 0.8
    names = stored(tmp_path / "run")["model"]
    assert any(name.startswith(("embedding", "pooler")) for name in names) == (row == "full")
    table, output = learnable / "notes.csv", tmp_path / "scores.csv"
    given = [f"--workdir={tmp_path / 'run'}", f"--input={table}", f"--output={output}"]
    assert small.run("predict", *given) == 0
    rows = list(csv.DictReader(output.open()))
    assert len(rows) == 120
    p = load(tmp_path / "run" / "predictions-test.npz")
    assert p.logits.shape == (len(p.labels), len(p.names))


@pytest.fixture(scope="module")
def brief(small, small_bert, learnable, tmp_path_factory):
    """A run of one epoch, on one of three classes."""
    run = tmp_path_factory.mktemp("run")
    assert trained(small, flags("lora", learnable / "multiclass", small_bert, epochs=1), run)["labels_scored"] == 3
    return run


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data.name": "notes"}, "config.base is a BERT, which predicts no next word; give a dataset with labels, or "),
        ({"quantize": "int8"}, "config.quantize is 'int8', which no BERT has; give ''"),
        ({"attention.kernel": "splash"}, "config.attention.kernel is 'splash', which no BERT has; give 'auto'"),
        (
            {"adapters.downstream.targets": "('q_proj',)"},
            "valid are query, key, value, dense, all-linear, or a regular",
        ),
        ({"data.length": 2}, "config.data.length is 2, [CLS] and [SEP] included; give 3 or more"),
    ],
)
def test_what_a_bert_is_not_is_told_in_a_line(small, small_bert, learnable, tmp_path, refused, changed, message):
    steps = flags("lora", learnable / "binary", small_bert, **changed)
    assert message in refused("train", *steps, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("plan", ["--topology=v5e:1x1", f"--config={CONFIGS / 'encoders.py'}:mor,lora", "--config.base={base}"]),
        ("export-adapter", ["--workdir={run}", "--output={out}"]),
        ("export-model", ["--workdir={run}", "--output={out}"]),
        ("generate", ["--workdir={run}", "--prompt=a"]),
    ],
)
def test_what_is_for_llamas_alone_says_so(small_bert, brief, tmp_path, refused, verb, arguments):
    places = {"base": small_bert, "run": brief, "out": tmp_path / "nowhere"}
    assert "BERT" in refused(verb, *(argument.format(**places) for argument in arguments))
    assert not places["out"].exists()


def test_entities_are_learned(small, small_bert, tmp_path):
    rng = random.Random(0)
    for part, count in (("train", 40), ("test", 10)):
        (tmp_path / part).mkdir()
        for number in range(count):
            text = " ".join(rng.choices(["the", "sea", "and", "snow", "rain", "dog", "fox"], k=20))
            marked = [match.span() for match in re.finditer("fox|dog", text)]
            lines = [f"T{i}\tAnimal {a} {b}\t{text[a:b]}\n" for i, (a, b) in enumerate(marked, 1)]
            (tmp_path / part / f"{number}.txt").write_text(text)
            (tmp_path / part / f"{number}.ann").write_text("".join(lines))
    fields = {"base": small_bert, "data.dir": tmp_path / "data", "dtype": "float32", "remat": "none", "batch_size": 4}
    fields |= {"epochs": 4, "data.length": 24, "train": tmp_path / "train", "test": tmp_path / "test"}
    fields |= {"learning_rate": 0.01, "trainable": "('base','head')"}
    steps = [f"--config={CONFIGS / 'annotated.py'}:n2c2,head_only", *(f"--config.{k}={v}" for k, v in fields.items())]
    assert small.run("prepare", *steps, f"--workdir={tmp_path / 'data'}") == 0
    assert trained(small, steps, tmp_path / "run")["f1"] > 0.8
