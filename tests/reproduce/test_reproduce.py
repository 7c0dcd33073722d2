"""`jaxlora reproduce` from an empty folder to the table: a generated cohort, small bases, a few rows of two tasks."""

import json
import shutil

import pytest

from jaxlora import workers
from jaxlora.eval import predictions
from jaxlora.reproduce.results import load
from jaxlora.reproduce.work import SCORE

CONFIG = "--config=configs/reproduce.py"
pytestmark = pytest.mark.usefixtures("quick_compiles")
SIZES = {
    **{"patients": 80, "length": 48, "test": 0.4, "bert.embed": 16, "bert.mlp": 16, "bert.vocab": 300},
    **{"base.vocab": 600, "base.embed": 16, "base.mlp": 16, "base.sentences": 60, "base.others": 20, "base.times": 1},
    **{f"{part}.epochs": 1 for part in ("base", "clinical", "head", "lora", "encoder")},
    **{f"{part}.batch_size": 8 for part in ("base", "clinical", "head", "lora", "encoder")},
}
SMALL = [CONFIG, "--scale=demo", "--tasks=los,mor", "--config.resamples=50", "--config.tfidf.c=(1.0,)"]
SMALL += [f"--config.demo.{name}={value}" for name, value in SIZES.items()]
ROWS = ("frozen", "frozen_downstream", "frozen_downstream_as_published", "tfidf")


@pytest.fixture(scope="module")
def here(quick_compiles):
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


def test_every_row_has_every_task_with_an_interval_and_no_verdict(made):
    table = load(made / "table-3.json")
    assert [column.name for column in table.columns] == ["mor", "los"]
    assert [row.name for row in table.rows] == list(ROWS)
    for row in table.rows:
        for cell in row.cells:
            assert 0 <= cell.low <= cell.value <= cell.high <= 100 and cell.runs == 1 and cell.verdict == ""
            assert (made / cell.folders[0] / "predictions-test.npz").exists()
    assert "nothing about the paper" in table.no_verdict
    assert set(table.counts) == {"clinical_corpus/mimic3", "mimic3_admission/mor", "mimic3_admission/los"}
    assert str(made) not in (made / "table-3.json").read_text()


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


def test_another_config_does_not_pass_for_the_first(made, refused):
    changed = [*SMALL, "--config.demo.head.learning_rate=0.5"]
    line = refused("reproduce", "--table=3", *changed, "--rows=frozen_downstream", f"--workdir={made}")
    assert "was started with config.learning_rate = 0.002, not 0.5" in line


def test_a_row_without_its_base_is_listed_with_the_remedy(small, made, tmp_path):
    data = f"--config.data.dir={made / 'demo' / 'data'}"
    arguments = [CONFIG, data, "--tasks=los", "--rows=bluebert,tfidf", "--config.resamples=20"]
    assert small.run("reproduce", "--table=3", *arguments, f"--workdir={tmp_path}") == 0
    absent, floor = load(tmp_path / "table-3.json").rows
    assert absent.not_run == "give --config.bases.bluebert=HF_DIR" and absent.cells[0].printed == 66.36
    assert floor.cells[0].value is not None and floor.cells[0].verdict == ""  # the paper prints no such row
    assert json.loads((tmp_path / "table-3.json").read_text())["no_verdict"] == ""


def test_an_encoder_is_trained_whole_beside_the_others(small, made):
    arguments = [*SMALL, "--rows=bluebert", "--tasks=mor", f"--workdir={made}"]
    assert small.run("reproduce", "--table=3", *arguments) == 0
    (row,) = load(made / "table-3.json").rows
    assert row.cells[0].value is not None and row.cells[0].printed == 76.95


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--table=5"], "--table: no '5'; valid: 2, 3, 4"),
        (["--table=3", "--rows=forzen"], "--rows: no 'forzen'; did you mean 'frozen'?"),
        (["--table=3", "--tasks=moor"], "--tasks: no 'moor'; did you mean 'mor'?"),
        (["--table=2", "--tasks=mor"], "--tasks: Table 2 is of step 1 and has no tasks; leave it out"),
        (["--table=3", "--seeds=0"], "--seeds is 0; give 1 or more"),
        (["--table=3", "--scale=small"], "--scale: no 'small'"),
        (["--table=3", "--config.bases.core=/nowhere"], "config.bases.core: /nowhere has no config.json"),
        (["--table=3", "--rows=tfidf", "--config.data.dir=/nowhere"], "is not prepared"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(refused, tmp_path, arguments, said):
    assert said in refused("reproduce", CONFIG, *arguments, f"--workdir={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()
