"""Evaluated runs to one table and its figures."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxlora.errors import UserError
from jaxlora.eval import metrics
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.report import report
from jaxlora.rows import ROWS

IDS = np.array([f"{i:016x}" for i in range(60)])


def write_run(folder, predictions, dataset, row, base=""):
    """Writes what `train` and `evaluate` leave behind."""
    folder.mkdir(parents=True)
    adapters = {name: {"targets": ["q_proj"]} for name in row["adapters"]}
    config = {"adapters": adapters, "active": row["active"], "trainable": row["trainable"], "data": {"name": dataset}}
    config["base"] = base
    (folder / "config.json").write_text(json.dumps(config))
    log = [{"step": step, "loss": 2 / step} for step in range(1, 21)] + [{"step": 20, "validation/auroc": 0.5}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    predictions.save(folder / "predictions-test.npz")


def classified(seed, kind="multiclass"):
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 3 if kind == "multiclass" else np.arange(60) % 2
    count = labels.max() + 1
    logits = (rng.normal(size=(60, count)) + np.eye(count)[labels]).astype(np.float32)
    return Predictions(kind, tuple("abc"[:count]), IDS, IDS, labels, logits)


def of_row(name):
    row = ROWS[name]
    return {"adapters": row.adapters, "active": row.active, "trainable": row.trainable}


def write_runs(tmp_path):
    tokens = np.full(60, 10, np.float32)
    corpus = Predictions("lm", (), IDS, IDS, nll=tokens * 2, base_nll=tokens * 3, tokens=tokens)
    clinical = {"adapters": ["clinical"], "active": ["clinical"], "trainable": ["clinical"]}
    write_run(tmp_path / "clinical", corpus, "notes", clinical)
    write_run(tmp_path / "stay" / "lora", classified(0), "length_of_stay", of_row("lora"))
    write_run(tmp_path / "stay" / "head", classified(1), "length_of_stay", of_row("head_only"))
    write_run(tmp_path / "death", classified(2, "binary"), "mortality", of_row("frozen_downstream"))
    return tmp_path


def test_language_models_of_other_techniques_and_bases_are_not_one(tmp_path):
    row = {"adapters": ["clinical"], "active": ["clinical"], "trainable": ["clinical"]}
    runs = [("llama", "lora", 2), ("llama", "prefix", 1), ("llama", "prefix", 2), ("pmc_llama", "lora", 4)]
    for number, (base, technique, loss) in enumerate(runs):
        tokens = np.full(60, 10, np.float32)
        corpus = Predictions("lm", (), IDS, IDS, nll=tokens * loss, base_nll=tokens * len(base), tokens=tokens)
        write_run(tmp_path / str(number), corpus, "notes", row, base)
        config = json.loads((tmp_path / str(number) / "config.json").read_text())
        config["adapters"]["clinical"]["technique"] = technique
        (tmp_path / str(number) / "config.json").write_text(json.dumps(config))
    report(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["perplexity"] == pytest.approx(
        {
            "base, llama": np.exp(5),
            "base, pmc_llama": np.exp(9),
            "clinical, LoRA, llama": np.exp(2),
            "clinical, prefix tuning, llama": (np.exp(1) + np.exp(2)) / 2,
            "clinical, LoRA, pmc_llama": np.exp(4),
        }
    )


def test_a_row_on_clinical_adapters_of_two_kinds_is_two(tmp_path):
    for number, technique in enumerate(("lora", "prefix")):
        write_run(tmp_path / technique, classified(number), "length_of_stay", of_row("frozen_downstream"))
        config = json.loads((tmp_path / technique / "config.json").read_text())
        config["adapters"]["clinical"]["technique"] = technique
        (tmp_path / technique / "config.json").write_text(json.dumps(config))
    report(tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["tasks"]["length_of_stay"]
    title = ROWS["frozen_downstream"].title
    assert list(rows) == [f"{title}, LoRA + LoRA", f"{title}, prefix tuning + LoRA"]


@pytest.fixture
def folder(tmp_path):
    return write_runs(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a report, and what it printed."""
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    return folder, report(folder, seconds=12.3)


def test_the_shape_of_the_report(reported):
    folder, _ = reported
    found = json.loads((folder / "report.json").read_text())
    assert set(found) == {"perplexity", "tasks", "tasks_in_detail", "seconds"}
    assert found["perplexity"] == pytest.approx({"base": np.exp(3), "clinical": np.exp(2)})
    tasks = {task: list(rows) for task, rows in found["tasks"].items()}
    assert tasks == {
        "length_of_stay": ["base (head only)", "LLaMA + LoRA"],
        "mortality": ["+ Clinical (frozen) + Downstream"],
    }
    values = found["tasks"]["length_of_stay"]["LLaMA + LoRA"]
    assert set(values) == {"auroc", "auprc", "f1", "accuracy", "n"}
    expected = metrics.evaluate(classified(0))
    assert values == pytest.approx({name: expected[name] for name in values})


def test_seeds_are_averaged(folder):
    write_run(folder / "stay" / "lora2", classified(5), "length_of_stay", of_row("lora"))
    report(folder / "stay")
    values = json.loads((folder / "stay" / "report.json").read_text())["tasks"]["length_of_stay"]["LLaMA + LoRA"]
    each = [metrics.evaluate(classified(seed))["auroc"] for seed in (0, 5)]
    assert values["runs"] == 2 and values["auroc"] == pytest.approx(np.mean(each))
    assert values["auroc_sd"] == pytest.approx(np.std(each, ddof=1))


def test_bases_are_not_seeds_of_each_other(tmp_path):
    for name, base in (("one", "models/llama"), ("two", "models/bluebert"), ("three", "other/llama")):
        write_run(tmp_path / name, classified(1), "length_of_stay", of_row("lora"), base)
    report(tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["tasks"]["length_of_stay"]
    assert rows.keys() == {f"LLaMA + LoRA, {base}" for base in ("models/llama", "models/bluebert", "other/llama")}


def test_the_table(reported):
    folder, text = reported
    auroc = metrics.evaluate(classified(0))["auroc"]
    assert f"| LLaMA + LoRA | {auroc:.3f} |" in text
    assert "20.09" in text and "7.39" in text and "12 seconds" in text
    assert (folder / "report.md").read_text().startswith(text)
    assert json.loads((folder / "report.json").read_text())["seconds"] == 12.3


def test_the_figures_are_pictures_that_the_report_shows(reported):
    folder, _ = reported
    text, made = (folder / "report.md").read_text(), sorted(path.name for path in (folder / "figures").iterdir())
    assert {"roc-length_of_stay.png", "roc-mortality.png"} <= set(made) and any("loss" in name for name in made)
    for name in made:
        assert f"(figures/{name})" in text
        with Image.open(folder / "figures" / name) as picture:
            picture.load()
            assert picture.format == "PNG" and 400 <= picture.width <= 4000 and 300 <= picture.height <= 4000
            assert len(picture.convert("L").getcolors()) > 50


def test_rows_without_a_language_model_run(folder, tmp_path):
    report(folder / "stay")
    found = json.loads((folder / "stay" / "report.json").read_text())
    assert found["perplexity"] == {} and list(found["tasks"]) == ["length_of_stay"]


def test_no_run_to_report(tmp_path):
    with pytest.raises(UserError, match="no evaluated run under .*; run `jaxlora evaluate` on one first"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_predictions(folder):
    (folder / "death" / "predictions-test.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="predictions-test.npz is damaged"):
        report(folder)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
def test_a_run_with_a_file_missing_or_damaged_is_named(folder, name):
    path = folder / "death" / name
    path.write_text(path.read_text()[:30])
    with pytest.raises(UserError, match=f"death/{name} is damaged"):
        report(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"death/{name} is missing"):
        report(folder)


def test_marked_parts_of_notes_have_columns_of_their_own(folder):
    entities = np.asarray([[0, 0, 5, 0], [1, 2, 4, 0]])
    tags, chosen = np.asarray([0, 1, 1, 0]), np.asarray([0, 1, 0, 0])
    marked = Predictions(
        "tokens", ("O", "B-a", "I-a"), IDS, IDS, tags, chosen=chosen, found=entities[:1], truth=entities
    )
    scores = np.tile(np.asarray([[1, 1], [0, 0.5]], np.float32), (30, 1))
    asked = Predictions("span", ("start", "end"), IDS, IDS, np.arange(60) // 2 % 2, scores=scores)
    write_run(folder / "marks", marked, "n2c2", of_row("lora"))
    write_run(folder / "asks", asked, "radqa", of_row("lora"))
    write_run(folder / "asks2", asked, "radqa", of_row("lora"))
    text = report(folder)
    assert "| row | F1 | precision | recall | token accuracy |\n|---|---:|---:|---:|---:|" in text
    assert "| LLaMA + LoRA | 0.667 | 1.000 | 0.500 | 0.750 |" in text
    assert "| LLaMA + LoRA | 0.750 ± 0.000 (2 runs) | 0.500 | 0.750 | 0.500 |" in text
    found = json.loads((folder / "report.json").read_text())["tasks"]
    assert found["n2c2"]["LLaMA + LoRA"]["f1"] == pytest.approx(2 / 3) and "auroc" in found["mortality"].popitem()[1]
    assert not list((folder / "figures").glob("roc-n2c2*")) and (folder / "figures" / "roc-mortality.png").exists()
