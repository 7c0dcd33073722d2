"""`prepare`, `train`, `evaluate`, `predict` and `report` end to end, with good and with bad input."""

import csv
import json
import re
import shutil
import stat

import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jaxlora.data import builders
from jaxlora.data.examples import split_of
from jaxlora.data.loader import Batches
from jaxlora.data.tokens import Tokenizer, tokenize
from jaxlora.eval import calibration, metrics, scaling
from jaxlora.eval.predict import make_predict_step, predict
from jaxlora.eval.predictions import load
from jaxlora.train import run_config
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh
from jaxlora.train.objective import Objective


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_rows(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def scored(trained, tmp_path):
    """The test split scored by `predict`: its notes, and the table of scores."""
    split = builders.load(trained.data, "outcome").split("test")
    notes = [split[i] for i in range(len(split))]
    table = write_rows(tmp_path / "new.csv", ["name", "note"], [(f"raw{i}", x["text"]) for i, x in enumerate(notes)])
    output = tmp_path / "scores.csv"
    flags = [f"--input={table}", f"--output={output}", "--id=name", "--text=note"]
    assert trained.run("predict", f"--workdir={trained.downstream}", *flags) == 0
    return notes, output


def test_training_learns_the_notes(trained):
    found = json.loads((trained.clinical / "metrics-test.json").read_text())
    assert found["perplexity"] < found["base_perplexity"]


def test_an_untrained_adapter_changes_nothing(trained):
    config = run_config.read(trained.clinical)
    mesh = make_mesh(1, 1)
    model = assemble(config, 0, mesh)
    split = builders.load(trained.data, "notes").split("test")
    notes = tokenize(split, Tokenizer(trained.base), config.data.length, "truncate", lambda _: None)
    definition, state = nnx.split(model)
    step = make_predict_step(definition, Objective("lm", ("clinical",)), mesh)
    p = predict(step, state, Batches(notes, config.data.length, config.batch_size, seed=None), "lm", (), mesh)
    assert p.nll.tobytes() == p.base_nll.tobytes() and p.tokens.min() > 0


@pytest.mark.parametrize("step", ["clinical", "downstream"])
def test_the_metrics_follow_from_the_predictions_alone(trained, step):
    workdir = getattr(trained, step)
    saved = json.loads((workdir / "metrics-test.json").read_text())
    p = load(workdir / "predictions-test.npz")
    expected = metrics.evaluate(p) | (calibration.evaluate(p) if step == "downstream" else {})
    assert saved == {name: None if value != value else value for name, value in expected.items()}
    assert saved["n"] == builders.load(trained.data, "outcome").splits["test"]


def test_predictions_have_keyed_ids_of_every_note(trained):
    path = trained.downstream / "predictions-test.npz"
    p, split = load(path), builders.load(trained.data, "outcome").split("test")
    assert p.ids.tolist() == [split[i]["id"] for i in range(len(split))]
    assert p.patients.tolist() == [split[i]["patient"] for i in range(len(split))]
    assert p.labels.tolist() == [split[i]["label"] for i in range(len(split))]
    assert p.names == ("fair", "good", "poor") and p.logits.shape == (len(split), 3)
    raw = {row[name] for row in read_rows(trained.notes) for name in ("id", "patient")}
    assert not raw & {*p.ids.tolist(), *p.patients.tolist()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_split(trained, tmp_path):
    run = shutil.copytree(trained.downstream, tmp_path / "run")
    assert trained.run("evaluate", f"--workdir={run}", "--split=validation") == 0
    count = builders.load(trained.data, "outcome").splits["validation"]
    validation = json.loads((run / "metrics-validation.json").read_text())
    assert validation["n"] == count and "temperature" not in validation
    assert trained.run("evaluate", f"--workdir={run}") == 0
    found, before = (json.loads((path / "metrics-test.json").read_text()) for path in (run, trained.downstream))
    assert {name: found[name] for name in before} == before
    assert found["temperature"] == scaling.temperature(load(run / "predictions-validation.npz"))
    assert {"ece_temperature", "brier_platt"} <= set(found)


def test_a_split_that_does_not_exist(trained, refused):
    assert "no split 'tets'; did you mean 'test'?" in refused(
        "evaluate", f"--workdir={trained.downstream}", "--split=tets"
    )


def test_predict_scores_as_evaluate_does(trained, scored):
    notes, output = scored
    rows, p = read_rows(output), load(trained.downstream / "predictions-test.npz")
    assert list(rows[0]) == ["row", "id", "fair", "good", "poor"]
    assert [int(row["row"]) for row in rows] == list(range(1, len(notes) + 1))
    found = np.array([[float(row[name]) for name in p.names] for row in rows])
    np.testing.assert_allclose(found, metrics.softmax(p.logits), atol=2e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=3e-6)


def test_predict_keys_the_ids(scored):
    notes, output = scored
    ids = {row["id"] for row in read_rows(output)}
    assert len(ids) == len(notes) and all(len(id) == 16 and int(id, 16) >= 0 for id in ids)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_predict_reads_json_lines(trained, scored, tmp_path):
    notes, output = scored
    table = tmp_path / "new.jsonl"
    table.write_text("".join(json.dumps({"id": f"raw{i}", "text": x["text"]}) + "\n" for i, x in enumerate(notes)))
    flags = [f"--input={table}", f"--output={tmp_path / 'again.csv'}"]
    assert trained.run("predict", f"--workdir={trained.downstream}", *flags) == 0
    assert (tmp_path / "again.csv").read_text() == output.read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("new.csv", "id,txt\n1,a b\n", "new.csv: no column 'text'; did you mean 'txt'?"),
        ("new.csv", "id,text\n1,a b\n2,\n", "new.csv, column 'text', row 2: no text"),
        ("new.csv", "id,text\n1, \n", "new.csv, column 'text', row 1: no text"),
        ("new.csv", "id,text\n1,a b\n,c\n", "new.csv, column 'id', row 2: no id"),
        ("new.csv", "", "new.csv: the file is empty"),
        ("new.csv", "id,text\n", "new.csv: the table has no rows"),
        ("new.jsonl", '{"id": 1, "text": ["a", "b"]}\n', "new.jsonl, column 'text', row 1: no text"),
        ("new.txt", "a", "new.txt: unknown type of table"),
    ],
)
def test_predict_refuses(trained, tmp_path, refused, name, text, message):
    (tmp_path / name).write_text(text)
    output = tmp_path / "scores.csv"
    output.write_text("before")
    flags = [f"--input={tmp_path / name}", f"--output={output}"]
    assert message in refused("predict", f"--workdir={trained.downstream}", *flags)
    assert output.read_text() == "before"


def test_predict_needs_a_head(trained, tmp_path, refused):
    flags = [f"--input={trained.notes}", f"--output={tmp_path / 'scores.csv'}"]
    line = refused("predict", f"--workdir={trained.clinical}", *flags)
    assert "is a language-model run and has no head; give a downstream run" in line


def test_predict_into_a_place_that_cannot_be(trained, refused):
    flags = [f"--input={trained.notes}", f"--output={trained.notes / 'scores.csv'}"]
    assert f"{trained.notes}" in refused("predict", f"--workdir={trained.downstream}", *flags)


def test_the_report_of_both_steps(trained, tmp_path):
    for name in ("clinical", "downstream"):
        shutil.copytree(trained.folder / name, tmp_path / name)
    assert trained.run("report", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "report.json").read_text())
    measured = json.loads((trained.downstream / "metrics-test.json").read_text())
    row = found["tasks"]["outcome"]["+ Clinical (frozen) + Downstream"]
    assert row["auroc"] == pytest.approx(measured["auroc"]) and set(found["perplexity"]) == {"base", "clinical"}


@pytest.mark.parametrize(("kind", "column"), [("multilabel", "several"), ("binary", "death")])
def test_other_kinds_of_labels(small, tmp_path, kind, column):
    flags = [f"--config.kind={kind}", f"--config.columns.label={column}", f"--config.data.dir={tmp_path / 'data'}"]
    flags = [*small.flags("head_only"), *flags, "--config.epochs=1", "--config.evaluations=1"]
    assert small.run("prepare", *flags, f"--workdir={tmp_path / 'data'}") == 0
    assert small.run("train", *flags, f"--workdir={tmp_path / 'run'}") == 0
    assert small.run("evaluate", f"--workdir={tmp_path / 'run'}") == 0
    found = json.loads((tmp_path / "run" / "metrics-test.json").read_text())
    assert 0 <= found["auroc"] <= 1 and found["labels_scored"] == (2 if kind == "multilabel" else 1)
    if kind == "multilabel":  # by how often a label is in the training notes
        train = builders.load(tmp_path / "data", "outcome").split("train")
        counts = np.bincount(np.concatenate([train[i]["label"] for i in range(len(train))]), minlength=2)
        assert found["labels_lt10"] + found["labels_10_99"] == 2 and found["labels_10_99"] == (counts >= 10).sum()
    output = tmp_path / "scores.csv"
    assert small.run("predict", f"--workdir={tmp_path / 'run'}", f"--input={small.notes}", f"--output={output}") == 0
    p = load(tmp_path / "run" / "predictions-test.npz")
    scores = {tuple(float(row[name]) for name in p.names) for row in read_rows(output)}
    expected = 1 / (1 + np.exp(-p.logits)) if kind == "multilabel" else metrics.softmax(p.logits)
    assert {tuple(np.round(row, 4)) for row in expected.tolist()} <= {tuple(np.round(row, 4)) for row in scores}


def test_a_validation_split_of_one_class_still_trains(trained, tmp_path):
    rows, shares = read_rows(trained.notes), ConfigDict({"validation": 0.2, "test": 0.3, "seed": 0})
    held_out = [row for row in rows if split_of(row["patient"], **shares) == "validation"]
    assert len({row["label"] for row in held_out}) > 1
    for row in held_out:
        row["label"] = "good"
    table = write_rows(tmp_path / "notes.csv", rows[0].keys(), [row.values() for row in rows])
    flags = [f"--config.path={table}", f"--config.data.dir={tmp_path / 'data'}"]
    flags = [*trained.flags("frozen_downstream"), *flags]
    assert trained.run("prepare", *flags, f"--workdir={tmp_path / 'data'}") == 0
    assert trained.run("train", *flags, f"--workdir={tmp_path / 'run'}") == 0
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert trained.run("evaluate", f"--workdir={tmp_path / 'run'}") == 0


def test_labels_that_changed_before_evaluation(trained, tmp_path, refused):
    text = trained.notes.read_text().replace(",poor,", ",dire,")
    (tmp_path / "notes.csv").write_text(text)
    flags = [*trained.flags("clinical"), f"--config.path={tmp_path / 'notes.csv'}"]
    assert trained.run("prepare", *flags, f"--workdir={tmp_path / 'data'}") == 0
    run = shutil.copytree(trained.downstream, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "data")
    (run / "config.json").write_text(json.dumps(config))
    assert "dataset outcome: " in (line := refused("evaluate", f"--workdir={run}")) and "other labels" in line


def changed(row, column, value):
    """A change of one cell of the table of notes; rows count from 1."""

    def change(rows):
        rows[row - 1][column] = value

    return change


def without(column):
    def change(rows):
        for row in rows:
            del row[column]

    return change


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (without("text"), [], "notes.csv: no column 'text'; "),
        (lambda rows: rows.clear(), [], "notes.csv: the file is empty"),
        (changed(7, "text", ""), [], "notes.csv, column 'text', row 7: no text"),
        (changed(7, "id", "Rw5Zx0"), [], "notes.csv, column 'id', row 7: an earlier row has the same id"),
        (
            changed(7, "label", "Zq7xWv9KpR"),
            ["--config.datasets.outcome.labels=('good','fair','poor')"],
            "notes.csv, column 'label', row 7: a label outside the 3 declared labels",
        ),
        (
            changed(2, "set", "test"),
            ["--config.datasets.outcome.tables.table.split=set"],
            "notes.csv, column 'patient', row 2: a patient of test is also in train; keep every patient in one split",
        ),
        (changed(1, "id", "Rw5Zx0"), ["--config.split.test=1.5"], "split: validation and test must be shares"),
    ],
)
def test_prepare_refuses_and_leaves_what_was_there(small, tmp_path, refused, change, flags, message):
    data, rows = shutil.copytree(small.data, tmp_path / "data"), read_rows(small.notes)
    for row in rows:
        row["set"] = "train"
    change(rows)
    columns = rows[0].keys() if rows else ()
    write_rows(tmp_path / "notes.csv", columns, [row.values() for row in rows])
    if not rows:
        (tmp_path / "notes.csv").write_text("")
    before = contents(data / "clinical_notes" / "outcome"), (data / "id.key").read_bytes()
    line = refused(
        "prepare", *small.flags("clinical"), f"--config.path={tmp_path / 'notes.csv'}", *flags, f"--workdir={data}"
    )
    assert message in line
    assert not [word for word in small.sentinels if word in line]
    assert (contents(data / "clinical_notes" / "outcome"), (data / "id.key").read_bytes()) == before
    assert {path.name for path in (data / "clinical_notes").iterdir()} == {"notes", "outcome"}


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_truncated_base(trained, tmp_path, refused, verb):
    base, run = shutil.copytree(trained.base, tmp_path / "base"), shutil.copytree(trained.clinical, tmp_path / "run")
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"base": str(base)}, indent=1) + "\n")
    before = contents(run)
    flags = [*trained.flags("clinical"), f"--config.base={base}"] if verb == "train" else []
    line = refused(verb, *flags, f"--workdir={run}")
    assert f"{base / 'model.safetensors'} is truncated or not a safetensors file; download it again" in line
    assert contents(run) == before


def test_a_truncated_dataset(trained, tmp_path, refused):
    data, run = shutil.copytree(trained.data, tmp_path / "data"), shutil.copytree(trained.downstream, tmp_path / "run")
    file = next((data / "clinical_notes" / "outcome").rglob("*test*array_record*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config = json.loads((run / "config.json").read_text())
    config["data"]["dir"] = str(data)
    (run / "config.json").write_text(json.dumps(config))
    before = contents(run)
    line = refused("evaluate", f"--workdir={run}")
    assert "dataset outcome: its files are damaged or cut short; run `jaxlora prepare` again" in line
    assert contents(run) == before


def test_several_corpora_are_mixed_by_weight(trained, tmp_path, capsys):
    flags = [*trained.flags("clinical"), "--config.epochs=1", "--config.data.mix=(('notes', 1.5),)"]
    assert trained.run("train", *flags, f"--workdir={tmp_path / 'run'}") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^notes: ([\d,]+) tokens, weight 1\.5$", printed, re.MULTILINE)
    single, mixed = (
        json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]
        for run in (trained.clinical, tmp_path / "run")
    )
    # Twice the epochs of the notes once, or one epoch of the notes two and a half times.
    assert mixed > single


def test_only_corpora_are_mixed(trained, tmp_path, refused):
    flags = [*trained.flags("clinical"), "--config.data.mix=(('outcome', 1.0),)"]
    assert "outcome or notes is no corpus" in refused("train", *flags, f"--workdir={tmp_path / 'run'}")
    flags = [*trained.flags("clinical"), "--config.data.mix=(('notes', 0.0),)"]
    assert "the weight 0.0 of a corpus is not above 0" in refused("train", *flags, f"--workdir={tmp_path / 'run'}")


def test_an_outcome_is_not_read_in_chunks(trained, tmp_path, refused):
    flags = [*trained.flags("frozen_downstream"), "--config.data.long_notes=chunk"]
    assert "an outcome reads 'truncate'd notes" in refused("train", *flags, f"--workdir={tmp_path / 'run'}")


def test_an_adapter_that_is_not_active_cannot_be_trained(trained, tmp_path, refused):
    flags = [*trained.flags("frozen_downstream"), "--config.active=clinical"]
    line = refused("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert "config.trainable: adapter 'downstream' is not in config.active" in line


def test_a_base_that_has_moved(trained, tmp_path, refused):
    base, run = shutil.copytree(trained.base, tmp_path / "base"), shutil.copytree(trained.downstream, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"base": "/where/it/was"}))
    assert "/where/it/was has no tokenizer" in refused("evaluate", f"--workdir={run}")
    assert trained.run("evaluate", f"--workdir={run}", f"--base={base}") == 0
    assert (run / "metrics-test.json").read_text() == (trained.downstream / "metrics-test.json").read_text()
