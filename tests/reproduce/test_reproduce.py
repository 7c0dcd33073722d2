"""`jaxlora reproduce` from an empty folder to the table: a generated cohort, small bases, a few rows of two tasks."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlora import pipeline, workers
from jaxlora.config import field_of
from jaxlora.eval import metrics, predictions
from jaxlora.reproduce.work import SCORE
from jaxlora.train import run_config

CONFIG = "--config=configs/reproduce.py"
SIZES = {
    **{"patients": 80, "length": 48, "test": 0.4, "bert.embed": 16, "bert.mlp": 16, "bert.vocab": 300},
    **{"base.vocab": 600, "base.embed": 16, "base.mlp": 16, "base.sentences": 60, "base.others": 20, "base.times": 1},
    **{f"{part}.epochs": 1 for part in ("base", "clinical", "head", "lora", "encoder")},
    **{f"{part}.batch_size": 8 for part in ("base", "clinical", "head", "lora", "encoder")},
}
SMALL = [CONFIG, "--scale=demo", "--tasks=los,mor", "--config.resamples=50", "--config.tfidf.c=(1.0,)"]
SMALL += [f"--config.demo.{name}={value}" for name, value in SIZES.items()]
ROWS = ("frozen", "frozen_downstream", "frozen_downstream_as_published", "tfidf")


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def here():
    """Runs are made in this process, one after the other; `run_all` has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def made(small, here, tmp_path_factory):
    """The folder of a table of a few rows."""
    folder = tmp_path_factory.mktemp("made")
    assert small.run("reproduce", "--table=3", *SMALL, f"--rows={','.join(ROWS)}", f"--workdir={folder}") == 0
    return folder


def load(path):
    """A table as its JSON has it."""
    return json.loads(path.read_text(), object_hook=lambda fields: SimpleNamespace(**fields))


def test_every_row_has_every_task_with_an_interval_and_no_verdict(made):
    table = load(made / "table-3.json")
    assert [column.name for column in table.columns] == ["mor", "los"]
    assert [row.name for row in table.rows] == list(ROWS)
    for row in table.rows:
        for cell in row.cells:
            assert 0 <= cell.low <= cell.value <= cell.high <= 100 and cell.runs == 1 and cell.verdict == ""
            assert (made / cell.folders[0] / "predictions-test.npz").exists()
    assert "nothing about the paper" in table.no_verdict
    assert set(vars(table.counts)) == {"clinical_corpus/mimic3", "mimic3_admission/mor", "mimic3_admission/los"}
    assert str(made) not in (made / "table-3.json").read_text()


def test_rows_are_compared_where_both_are_there(made):
    table = load(made / "table-3.json")
    (pair,) = table.pairs
    assert (pair.one, pair.other) == ROWS[1:3]
    rows = {row.name: [cell.value for cell in row.cells] for row in table.rows}
    for number, difference in enumerate(pair.differences):
        assert difference.value == pytest.approx(rows[ROWS[1]][number] - rows[ROWS[2]][number])
        assert difference.low <= difference.value <= difference.high and 0 <= difference.p <= difference.holm <= 1
    assert [difference.delong is None for difference in pair.differences] == [False, True]  # mortality is binary


def test_two_adapters_do_what_their_row_says(made):
    rows = {row.name: row for row in load(made / "table-3.json").rows}
    found = {
        name: {(a.name, a.changed, a.effect > 0) for a in rows[name].adapters}
        for name in ("frozen", "frozen_downstream", "frozen_downstream_as_published")
    }
    assert found["frozen"] == {("clinical", False, True)}
    assert found["frozen_downstream"] == {("clinical", False, True), ("downstream", True, True)}
    assert found["frozen_downstream_as_published"] == {("clinical", False, True), ("downstream", False, False)}
    assert all(adapter.as_it_should for row in rows.values() for adapter in row.adapters)
    assert rows["frozen_downstream_as_published"].as_published and not rows["frozen_downstream"].as_published


def test_a_row_as_published_is_the_row_without_its_second_adapter_to_the_bit(made):
    rows = {row.name: row for row in load(made / "table-3.json").rows}
    for task in ("mor", "los"):
        runs = [made / "runs" / "llama" / task / row / "seed-0" for row in ROWS[:3]]
        plain, both, published = [predictions.load(run / "predictions-test.npz").logits for run in runs]
        assert (plain == published).all() and (plain != both).any()
    figures = [[(cell.value, cell.low, cell.high) for cell in rows[name].cells] for name in (ROWS[0], ROWS[2])]
    assert figures[0] == figures[1]


def test_every_form_of_the_table_is_there(made):
    for suffix, mark in (("md", "| **LLaMA** |"), ("tex", r"\begin{table}"), ("html", "<!DOCTYPE html>")):
        text = (made / f"table-3.{suffix}").read_text()
        assert mark in text and "76.99" not in text and "66.00" in text  # of the row that was asked for


def test_what_is_there_is_not_made_again_and_what_is_missing_is(small, made, capfd):
    command = ["reproduce", "--table=3", *SMALL, f"--rows={','.join(ROWS)}", f"--workdir={made}"]
    before = (made / "table-3.json").read_bytes()
    assert small.run(*command) == 0
    assert "Table 3: 8 runs, 8 of them made before" in capfd.readouterr().out
    assert (made / "table-3.json").read_bytes() == before
    (lost,) = made.glob("runs/llama/los/frozen_downstream/seed-0")
    shutil.rmtree(lost / "checkpoints")
    (lost / SCORE).unlink()
    assert small.run(*command) == 0
    assert "Table 3: 8 runs, 7 of them made before" in capfd.readouterr().out
    assert (made / "table-3.json").read_bytes() == before  # the same bits from the start


def test_a_folder_is_the_same_by_another_path(small, made, monkeypatch, capfd):
    command = [argument.replace("=configs/", f"={Path.cwd()}/configs/") for argument in SMALL]
    monkeypatch.chdir(made.parent)
    arguments = ["--table=3", *command, "--rows=frozen_downstream", f"--workdir={made.name}"]
    assert small.run("reproduce", *arguments) == 0
    assert "Table 3: 2 runs, 2 of them made before" in capfd.readouterr().out


def test_another_config_does_not_pass_for_the_first(made, refused):
    changed = [*SMALL, "--config.demo.head.learning_rate=0.5"]
    line = refused("reproduce", "--table=3", *changed, "--rows=frozen_downstream", f"--workdir={made}")
    assert "was started with config.learning_rate = 0.002, not 0.5" in line


def test_a_row_without_its_base_is_listed_with_the_remedy(small, made, tmp_path):
    data = f"--config.data.dir={made / 'demo' / 'data'}"
    arguments = [CONFIG, data, "--tasks=los", "--rows=bluebert,tfidf", "--config.resamples=20"]
    assert small.run("reproduce", "--table=3", *arguments, f"--workdir={tmp_path}") == 0
    absent, floor = load(tmp_path / "table-3.json").rows
    made_again = load(tmp_path / "table-3.json").command
    assert made_again.split()[-4:] == [CONFIG, "--config.data.dir=DIR", "--config.resamples=20", "--workdir=RUNS"]
    assert absent.not_run == "give --config.bases.bluebert=HF_DIR" and absent.cells[0].printed == 66.36
    assert floor.cells[0].value is not None and floor.cells[0].verdict == ""  # the paper prints no such row
    assert json.loads((tmp_path / "table-3.json").read_text())["no_verdict"] == ""


def test_an_encoder_is_trained_whole_beside_the_others(small, made):
    arguments = [*SMALL, "--rows=bluebert", "--tasks=mor", f"--workdir={made}"]
    assert small.run("reproduce", "--table=3", *arguments) == 0
    (row,) = load(made / "table-3.json").rows
    assert row.cells[0].value is not None and row.cells[0].printed == 76.95
    assert load(made / "table-3.json").pairs == []  # what it is compared with was not asked for


def test_an_encoder_with_lora_is_compared_with_the_whole_one_of_table_3(small, made, refused):
    arguments = ["--table=4", *SMALL, "--rows=bluebert_lora", "--tasks=mor", f"--workdir={made}"]
    assert small.run("reproduce", *arguments) == 0
    table = load(made / "table-4.json")
    (pair,) = table.pairs
    assert (pair.one, pair.other) == ("bluebert_lora", "bluebert")
    whole = predictions.load(made / "runs" / "bluebert" / "mor" / "full" / "seed-0" / "predictions-test.npz")
    ours = table.rows[0].cells[0].value
    assert pair.differences[0].value == pytest.approx(ours - 100 * metrics.evaluate(whole)["auroc"])
    own = made / "runs" / "bluebert" / "mor" / "full" / "seed-0" / "config.json"
    as_it_was = own.read_text()
    own.write_text(as_it_was.replace('"epochs": 1,', '"epochs": 3,'))
    try:  # a run of another config, as of a Table 3 that was made otherwise
        assert "full/seed-0 was started with config.epochs = 3, not 1" in refused("reproduce", *arguments)
    finally:
        own.write_text(as_it_was)


def test_runs_of_a_row_that_share_a_program_are_those_that_train_makes(small, made, tmp_path):
    command = ["reproduce", "--table=3", *SMALL, "--rows=frozen_downstream", f"--workdir={made}"]
    assert small.run(*command) == 0
    (row,) = load(made / "table-3.json").rows
    assert row.title == "+ Clinical (Frozen) ++ Downstream"  # what it is put on was not asked for
    for task in ("mor", "los"):
        shutil.move(made / f"runs/llama/{task}/frozen_downstream/seed-0", tmp_path / task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train_run", lambda *_: pytest.fail("these are members"))
        assert small.run(*command, "--config.together=2") == 0
    (together,) = load(made / "table-3.json").rows
    for cell, own in zip(together.cells, row.cells, strict=True):
        assert (cell.value, cell.low, cell.high) == pytest.approx((own.value, own.low, own.high), abs=0.01)
        member, alone = made / cell.folders[0], tmp_path / cell.task
        assert (member / "config.json").read_bytes() == (alone / "config.json").read_bytes()
        np.testing.assert_allclose(losses(member), losses(alone), rtol=1e-5)
        assert len(losses(member)) > 2 and (member / "log.jsonl").read_bytes() != (alone / "log.jsonl").read_bytes()
    found = [[(a.name, a.start, a.changed, a.as_it_should) for a in of.adapters] for of in (together, row)]
    assert found[0] == found[1] and all(adapter.as_it_should for adapter in row.adapters)


def test_a_row_is_searched_before_its_seeds_are_run(small, made, capfd):
    searching = ["--config.search.method=random", "--config.search.budget=2"]
    command = ["reproduce", "--table=3", *SMALL, *searching, "--rows=lora,tfidf", "--tasks=mor", f"--workdir={made}"]
    assert small.run(*command) == 0
    cell = made / "runs/llama/mor/lora/random-2"
    trials = json.loads((cell / "search/sweep.json").read_text())
    best = json.loads((cell / "search/best.json").read_text())
    sizes = {f"adapters.downstream.{name}" for name in ("rank", "alpha", "dropout")}
    assert len(trials) == 2 and all(trial["status"] == "complete" for trial in trials.values())
    assert set(best["settings"]) == {"learning_rate", *sizes}
    used = run_config.read(str(cell / "seed-0"))
    assert {field: field_of(used, field) for field in best["settings"]} == best["settings"]
    np.testing.assert_allclose(losses(cell / "seed-0"), losses(cell / "search" / best["trial"]), rtol=1e-5)
    table = load(made / "table-3.json")
    assert table.rows[0].cells[0].folders == ["runs/llama/mor/lora/random-2/seed-0"]
    assert table.rows[1].cells[0].folders == ["runs/words/mor/tfidf/seed-0"]
    said = "searched with 2 trials at random, by the AUROC of seed 0 on the validation notes"
    assert said in table.remarks[-1] and "(learning rate, downstream rank, downstream alpha, " in table.remarks[-1]
    assert not (made / "runs/llama/mor/lora/seed-0").exists()
    before = (made / "table-3.json").read_bytes()
    capfd.readouterr()
    assert small.run(*command) == 0
    assert "Table 3, searches: 1 runs, 1 of them made before" in capfd.readouterr().out
    assert (made / "table-3.json").read_bytes() == before


def test_a_perplexity_as_published_is_of_batches_and_has_no_interval(small, made, tmp_path):
    shutil.copytree(made / "demo", tmp_path / "demo")
    arguments = [option for option in SMALL if not option.startswith("--tasks")]
    arguments += ["--rows=lora", "--config.mode=paper", f"--workdir={tmp_path}"]
    assert small.run("reproduce", "--table=2", *arguments) == 0
    table = load(tmp_path / "table-2.json")
    cells = {cell.task: cell for cell in table.rows[0].cells}
    saved = predictions.load(tmp_path / cells["test_ppl"].folders[0] / "predictions-test.npz")
    batches = [slice(start, start + 8) for start in range(0, len(saved.ids), 8)]
    published = math.exp(np.mean([saved.nll[part].sum() / saved.tokens[part].sum() for part in batches]))
    assert cells["test_ppl"].value == pytest.approx(published, rel=1e-5) and cells["test_ppl"].low is None
    assert "micro-batches of 8 notes, as published, which has no interval" in table.remarks[-2]
    assert "--config.mode=paper" in table.command and "DIAG" not in table.remarks[-2]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--table=5"], "--table: no '5'; valid: 2, 3, 4"),
        (["--table=3", "--rows=forzen"], "--rows: no 'forzen'; did you mean 'frozen'?"),
        (["--table=3", "--tasks=moor"], "--tasks: no 'moor'; did you mean 'mor'?"),
        (["--table=2", "--tasks=mor"], "--tasks: Table 2 is of step 1 and has no tasks; leave it out"),
        (["--table=3", "--seeds=0"], "--seeds is 0; give 1 or more"),
        (["--table=3", "--scale=demo", "--config.mode=paper"], "--tasks: pmv in mode paper has BEEP's labels"),
        (["--table=3", "--config.resamples=0"], "config.resamples is 0; it must be 1 or more"),
        (["--table=3", "--scale=small"], "--scale: no 'small'"),
        (
            ["--table=3", "--scale=demo", "--config.bases.core=DIR"],
            "config.bases.core: --scale=demo makes its own bases",
        ),
        (["--table=3", "--config.bases.core=/nowhere"], "config.bases.core: /nowhere has no config.json"),
        (["--table=3", "--rows=tfidf", "--config.data.dir=/nowhere"], "is not prepared"),
        (["--table=3", "--config.search.method=grid"], "config.search.method: no 'grid'; valid: bayes, random"),
        (["--table=2", "--config.search.method=random"], "config.search.method: the techniques of Table 2 have"),
        (["--table=3", "--config.search.method=random", "--config.search.budget=0"], "config.search.budget is 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(refused, tmp_path, arguments, said):
    assert said in refused("reproduce", CONFIG, *arguments, f"--workdir={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()
