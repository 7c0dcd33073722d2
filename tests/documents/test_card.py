"""The documents of a run: what they say is what its folder holds."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from jaxlora.documents.facts import gather
from jaxlora.documents.model_card import model_card
from jaxlora.documents.tripod import ITEMS, TO_BE_WRITTEN, tripod
from jaxlora.eval import metrics, uncertainty
from jaxlora.eval.predictions import Predictions, load


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A copy of the downstream run with its documents."""
    folder = tmp_path_factory.mktemp("documents") / "run"
    shutil.copytree(trained.downstream, folder)
    assert trained.run("card", f"--workdir={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def facts(run):
    return gather(str(run), resamples=200)


def test_partitions_are_those_of_the_checkpoint(run, facts, stored):
    model = stored(run)["model"]
    for name in ("clinical", "downstream"):
        expected = sum(value.size for path, value in model.items() if f"/adapters/{name}/" in path)
        assert facts.partitions[f"adapter/{name}"] == expected > 0
    assert facts.partitions["head"] == sum(value.size for path, value in model.items() if path.startswith("head"))
    assert facts.trained == {"adapter/downstream", "head"}


def test_the_base_and_where_the_adapter_is_from(facts, trained):
    config = json.loads((trained.base / "config.json").read_text())
    embed, mlp, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    block = 2 * embed * embed + 2 * embed * keys + 3 * embed * mlp + 2 * embed
    assert facts.base_parameters == config["vocab_size"] * embed + layers * block + embed
    assert facts.base == trained.base.name
    assert list(facts.earlier) == ["clinical"]


def test_the_card_has_the_metrics_with_their_intervals(run):
    predictions, text = load(run / "predictions-test.npz"), (run / "model-card.md").read_text()
    low, high = uncertainty.intervals(predictions, ["auroc"])["auroc"]
    assert f"{metrics.evaluate(predictions)['auroc']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"{len(predictions.ids)} notes of {len(set(predictions.patients))} patients" in text
    for heading in ("Intended use", "Data", "Training", "Performance", "Calibration", "Subgroups", "Privacy"):
        assert f"\n## {heading}" in text
    assert "not a medical device" in text and "no public hub" in text


def test_all_27_items_and_those_that_are_yours(run):
    text = (run / "tripod-ai.md").read_text()
    numbers = re.findall(r"^\| [\w ]+ \| (\d+) \|", text, re.M)
    assert numbers == [str(number) for number in range(1, 28)] == [number for _, number, _ in ITEMS]
    yours = {line.split(" | ")[1] for line in text.splitlines() if line.endswith(f"| {TO_BE_WRITTEN} |")}
    assert {"1", "2", "17", "19", "25", "26", "27"} <= yours and not {"12", "21", "22", "23"} & yours


def test_no_text_no_identifier_no_path(run, trained, facts):
    predictions = load(run / "predictions-test.npz")
    for text in (model_card(facts), tripod(facts)):
        for secret in (
            *trained.sentinels,
            str(trained.folder),
            *map(str, predictions.ids),
            *map(str, predictions.patients),
        ):
            assert secret not in text


def test_groups_are_shown_and_small_ones_are_not(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    ids = np.array([f"{i:016x}" for i in range(100)])
    labels = np.arange(100) % 2
    logits = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    codes = np.where(np.arange(100) < 45, 0, np.where(np.arange(100) < 90, 1, 2))
    groups = {"sex": (("F", "M", "X"), codes)}
    Predictions("binary", ("no", "yes"), ids, ids, labels, logits, groups=groups).save(folder / "predictions-test.npz")
    text = model_card(dataclasses.replace(gather(str(folder), resamples=50), kind="binary"))
    assert "| sex | X | not shown |" in text and re.search(r"\| sex \| [FM] \| 45 \|", text)
    assert "100 patients, 50 of them" in text


def test_a_run_that_was_not_evaluated(run, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "predictions-test.npz").unlink()
    assert "jaxlora evaluate" in refused("card", f"--workdir={folder}")


def test_a_language_model(trained):
    facts = gather(str(trained.clinical), resamples=50)
    text = model_card(facts)
    assert "perplexity" in text and "## Calibration" not in text
    assert tripod(facts).count(TO_BE_WRITTEN) > 10
