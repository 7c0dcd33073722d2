"""The documents of a run: what they say is what its folder holds."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.documents.facts import gather
from jaxlora.documents.model_card import model_card
from jaxlora.documents.tripod import ITEMS, TO_BE_WRITTEN, tripod
from jaxlora.eval import metrics, uncertainty
from jaxlora.eval.predictions import Predictions, load
from jaxlora.reproduce import tfidf


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
        assert facts.model.partitions[f"adapter/{name}"] == expected > 0
    assert facts.model.partitions["head"] == sum(value.size for path, value in model.items() if path.startswith("head"))
    assert facts.model.trained == {"adapter/downstream", "head"}


def test_the_base_and_where_the_adapter_is_from(facts, trained):
    config = json.loads((trained.base / "config.json").read_text())
    embed, mlp, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    block = 2 * embed * embed + 2 * embed * keys + 3 * embed * mlp + 2 * embed
    assert facts.model.base_parameters == config["vocab_size"] * embed + layers * block + embed
    assert facts.model.base == trained.base.name
    assert list(facts.model.earlier) == ["clinical"]


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
    assert text.startswith("# Model card: language model with adapter clinical, notes\n")
    assert "perplexity" in text and "## Calibration" not in text and "\n\n\n" not in text
    assert tripod(facts).count(TO_BE_WRITTEN) > 10


@pytest.fixture(scope="module")
def words(small, tmp_path_factory):
    """A run of TF-IDF with its documents."""
    folder, config = tmp_path_factory.mktemp("words"), default()
    config.data.dir, config.data.name = str(small.data), "outcome"
    config.tfidf = ConfigDict({"c": (0.5, 5.0), "words": 1000})
    tfidf.fit(config, str(folder))
    assert small.run("card", f"--workdir={folder}") == 0
    return folder


def test_a_run_without_a_language_model(words, small):
    card, checklist = ((words / name).read_text() for name in ("model-card.md", "tripod-ai.md"))
    log = [json.loads(line) for line in (words / "log.jsonl").read_text().splitlines()]
    best = max(reversed(log), key=lambda line: line["auroc"])
    assert "# Model card: TF-IDF + logistic regression, outcome" in card
    assert f"of 0.5, 5: {best['c']:g}, whose AUROC on validation notes" in card and f"{best['auroc']:.3f}" in card
    assert "at most 1,000 words" in card and "read whole" in card and "Classes weighted" in card
    value = metrics.evaluate(load(words / "predictions-test.npz"))["auroc"]
    assert f"| test | {value:.3f} [" in card and f"AUROC, one-vs-rest {value:.3f} (" in checklist
    unfilled = {line.split(" | ")[1] for line in checklist.splitlines() if line.endswith(f"| {TO_BE_WRITTEN} |")}
    assert "22" in unfilled and not {"5", "7", "12", "21", "23"} & unfilled
    for text in (card, checklist):
        assert not any(word in text.lower() for word in ("token", "adapter", "checkpoint", "epoch", "fingerprint"))
        assert not any(word in text for word in small.sentinels)


@pytest.mark.parametrize(
    ("kind", "names", "told", "outputs"),
    [
        (
            "tokens",
            ("O", "B-Drug", "I-Drug", "B-Dose", "I-Dose"),
            "entities in a note (2 types)",
            "a tag for each token",
        ),
        ("span", ("start", "end"), "the answer to a question in a note\n", "the likeliest answer"),
        ("lm", (), "next token of a clinical note\n", "the probability of each next token"),
    ],
)
def test_what_is_predicted(facts, kind, names, told, outputs):
    said = {"tokens": "f1", "span": "f1", "lm": "perplexity"}[kind]
    found = facts.evaluated["test"]
    kept = {name: 0.5 for name in (*found.values, "precision", "recall", "exact", said)}
    bounds = {name: (0.4, 0.6) for name in kept}
    of = dataclasses.replace(found, values=kept, intervals=bounds, calibration={}, groups=(), gaps={})
    other = dataclasses.replace(facts, kind=kind, labels=names, evaluated={"test": of})
    assert told in model_card(other) and "probabilities" not in model_card(other)
    assert outputs in tripod(other)


def test_a_base_that_was_trained(facts):
    trained = {"partitions": {"base": 1234, "head": 6}, "trained": frozenset({"base", "head"})}
    whole = {**trained, "adapters": {}, "earlier": {}}
    text = model_card(dataclasses.replace(facts, model=dataclasses.replace(facts.model, **whole)))
    assert "trained in this run; its fingerprint before training is" in text and "| base | 1,234 | yes |" in text
    assert (
        "A model trained on MIMIC" in text and "share patients" not in text and "frozen" not in text.split("\n", 1)[1]
    )
