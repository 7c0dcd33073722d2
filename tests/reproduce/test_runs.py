"""From lines of a table to the configs of runs."""

from pathlib import Path

import pytest

from configs.reproduce import get_config
from jaxlora.config import default, flat
from jaxlora.reproduce.runs import jobs_of, needs_clinical
from jaxlora.reproduce.tables import TABLES

WORKDIR = Path("runs")
LINES = {line.name: line for paper in (TABLES[4], TABLES[3]) for line in paper.rows}


@pytest.fixture
def config():
    config = get_config()
    for name in config.bases:
        config.bases[name] = f"/bases/{name}"
    return config


def test_a_run_has_every_field_of_a_config_and_no_part_of_the_tables(config):
    (job,) = jobs_of(config, "full", LINES["trainable_downstream"], ("mor",), (7,), WORKDIR)
    assert set(flat(default())) <= set(flat(job.config.to_dict()))
    assert not {"bases", "full", "demo", "resamples", "tfidf"} & set(job.config)
    assert job.folder == WORKDIR / "runs/llama/mor/trainable_downstream/seed-7" and job.config.seed == 7
    assert (job.config.base, job.config.data.name) == ("/bases/llama", "mimic3_admission/mor")
    assert (job.config.data.length, job.config.epochs, job.config.select) == (128, 10, "best")


def test_sizes_are_the_papers(config):
    (job,) = jobs_of(config, "full", LINES["pmc_trainable_downstream"], ("los",), (0,), WORKDIR)
    clinical, downstream = job.config.adapters.clinical, job.config.adapters.downstream
    assert (clinical.rank, clinical.alpha, clinical.dropout) == (4, 4.0, 0.2)
    assert clinical.workdir == str(WORKDIR / "runs/pmc_llama/clinical/adapter/seed-0")
    assert (downstream.rank, downstream.alpha, downstream.dropout) == (16, 4.0, 0.0)
    rates = {
        (name, task): jobs_of(config, "full", LINES[name], (task,), (0,), WORKDIR)[0].config.learning_rate
        for name in ("lora", "frozen", "bluebert", "bluebert_lora")
        for task in ("mor", "los")
    }
    assert {at for at, rate in rates.items() if rate != 5e-5} == {("lora", "mor")} and rates["lora", "mor"] == 3e-4


def test_an_encoder_is_trained_whole_or_with_a_lora_on_queries_and_values(config):
    (whole,) = jobs_of(config, "full", LINES["core"], ("mor",), (0,), WORKDIR)
    (lora,) = jobs_of(config, "full", LINES["core_lora"], ("mor",), (0,), WORKDIR)
    assert whole.config.trainable == ("base", "head") and not whole.config.adapters
    assert lora.config.adapters.downstream.targets == ("query", "value")
    assert lora.config.trainable == ("downstream", "head") and lora.config.batch_size == 64


def test_paper_mode_is_the_published_schedule_and_the_last_epoch(config):
    config.mode = "paper"
    (job,) = jobs_of(config, "full", LINES["lora"], ("diag",), (0,), WORKDIR)
    assert (job.config.decay, job.config.select, job.config.paper_accumulate) == ("paper", "last", 2)
    assert job.config.data.name == "mimic3_admission/diag_paper"


def test_every_seed_and_task_is_a_run_on_one_adapter_of_step_1(config):
    jobs = jobs_of(config, "full", LINES["frozen"], ("mor", "los"), (0, 1, 2), WORKDIR)
    assert len({job.folder for job in jobs}) == 6
    assert len({job.config.adapters.clinical.workdir for job in jobs}) == 1


def test_the_floor_is_the_same_for_every_seed_and_is_fitted_once(config):
    jobs = jobs_of(config, "full", LINES["tfidf"], ("mor", "los"), (3, 4), WORKDIR)
    assert [(job.task, job.seed) for job in jobs] == [("mor", 3), ("los", 3)]


def test_only_rows_with_a_clinical_adapter_need_step_1():
    needing = {line.name for line in TABLES[3].rows if needs_clinical(line)}
    assert {name.removeprefix("pmc_") for name in needing} == {
        "frozen",
        "frozen_downstream",
        "frozen_downstream_as_published",
        "trainable",
        "trainable_downstream",
        "trainable_downstream_as_published",
    }
