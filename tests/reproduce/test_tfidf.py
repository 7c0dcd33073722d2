"""TF-IDF and logistic regression against the same model put together otherwise, on prepared notes."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from jaxlora.config import default
from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.examples import Example, Task
from jaxlora.errors import UserError
from jaxlora.eval import calibration, scaling, thresholds
from jaxlora.eval.metrics import evaluate, softmax
from jaxlora.eval.predictions import load
from jaxlora.eval.runs import find_runs
from jaxlora.reproduce import tfidf


@pytest.fixture(scope="module")
def fitted(small, tmp_path_factory):
    """The predictions of the test split, and the folder."""
    folder = tmp_path_factory.mktemp("tfidf")
    tfidf.fit(config_of(small, "outcome"), str(folder))
    return load(folder / "predictions-test.npz"), folder


def config_of(small, name, c=(0.5, 5.0)) -> ConfigDict:
    config = default()
    config.data.dir, config.data.name = str(small.data), name
    config.tfidf = ConfigDict({"c": c, "words": 1000})
    return config


def test_probabilities_are_those_of_the_same_model(small, fitted):
    predictions, folder = fitted
    prepared = builders.load(small.data, "outcome")
    rows = {name: _rows(prepared, name) for name in ("train", "test")}
    words = CountVectorizer(min_df=2, ngram_range=(1, 2), max_features=1000)
    chosen = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    best = max(reversed(chosen), key=lambda line: line["auroc"])["c"]
    model = LogisticRegression(C=best, class_weight="balanced", max_iter=300)
    pipeline = make_pipeline(words, TfidfTransformer(sublinear_tf=True), model)
    pipeline.fit([row["text"] for row in rows["train"]], [row["label"] for row in rows["train"]])
    expected = pipeline.predict_proba([row["text"] for row in rows["test"]])
    np.testing.assert_allclose(softmax(predictions.logits), expected, atol=1e-3)
    assert predictions.ids.tolist() == [row["id"] for row in rows["test"]]
    assert predictions.labels.tolist() == [row["label"] for row in rows["test"]]


def _rows(prepared, split):
    source = prepared.split(split)
    return [source[i] for i in range(len(source))]


def test_strength_is_the_best_on_validation(fitted):
    predictions, folder = fitted
    tried = [json.loads(line)["auroc"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(tried) == 2
    assert evaluate(load(folder / "predictions-validation.npz"))["auroc"] == pytest.approx(max(tried))


def test_the_report_knows_it_and_no_word_of_a_note_is_kept(small, fitted):
    _, folder = fitted
    (run,) = find_runs(folder)
    assert run.row == "TF-IDF + logistic regression"
    for path in folder.iterdir():
        content = path.read_bytes().lower()
        assert not any(word.lower().encode() in content for word in small.sentinels)


def test_two_classes_have_two_logits_and_several_labels_one_each():
    features = csr_matrix([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.1, 1.0]])
    of = features, np.asarray([0, 1, 0, 1]), {"test": features}
    found = tfidf._of_classes(*of, 2, 1.0, None)["test"]
    assert (found[:, 0] == 0).all() and (found[:, 1] > 0).tolist() == [False, True, False, True]
    # A class that occurs in no training note comes last, whichever it is.
    for absent, labels in ((2, [0, 1, 0, 1]), (0, [1, 2, 1, 2])):
        found = tfidf._of_classes(features, np.asarray(labels), {"test": features}, 3, 1.0, None)["test"]
        assert found.argmax(axis=1).tolist() == labels and (found.argmin(axis=1) == absent).all()
        assert (found[:, absent, None] < np.delete(found, absent, axis=1)).all()
    several = np.asarray([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    found = tfidf._of_labels(features, several, {"test": features}, 1.0, [0, 1, 2], "")["test"]
    assert (found[:, 0] > 0).tolist() == [True, False, True, False]
    np.testing.assert_allclose(found[:, 1:], np.broadcast_to(np.log([1 / 5, 5]), (4, 2)), rtol=1e-6)


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_a_rare_label_is_ranked_as_with_a_free_intercept(c):
    """The reference takes scikit-learn's other solver, which does not shrink the intercept, to its end."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(1 / np.arange(1, 301) ** 0.7, (3000, 300))
    notes = csr_matrix(counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1))
    score = counts[:, 20:30].sum(axis=1) + rng.normal(size=3000)
    labels = (score >= np.sort(score)[-12]).astype(np.uint8)[:, None]
    found = tfidf._of_labels(notes[:2000], labels[:2000], {"test": notes}, c, [0], "")["test"][:, 0]
    free = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(notes[:2000], labels[:2000, 0])
    areas = [roc_auc_score(labels[2000:, 0], of[2000:]) for of in (found, free.decision_function(notes))]
    assert areas[0] == pytest.approx(areas[1], abs=0.02)
    assert spearmanr(found, free.decision_function(notes)).statistic > 0.99  # 0.66 to 0.86 where it is shrunk


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A dataset of eight labels, from frequent to rare, each told by a word of its own."""
    folder, rng, examples = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0), []
    splits = rng.choice(["train", "validation", "test"], 500, p=[0.6, 0.2, 0.2])
    for number, split in enumerate(splits):
        label = np.flatnonzero(rng.random(8) < 0.5 * 0.7 ** np.arange(8))
        told = [f"sign{i}" for i in label if rng.random() < 0.8] + rng.choice(["pain", "fever", "cough"], 4).tolist()
        examples.append(Example(f"{number:016x}", f"{number:016x}", " ".join(told), tuple(label.tolist()), split))
    task = Task("labelled", "multilabel", tuple(f"L{i}" for i in range(8)))
    builders.build(folder, Work(task, examples))
    config = default()
    config.data.dir, config.data.name = str(folder), "labelled"
    config.tfidf = ConfigDict({"c": (0.5, 5.0), "words": 100})
    return config


def test_c_is_chosen_by_some_labels_and_all_are_fitted(labelled, tmp_path, monkeypatch):
    for name, tried in (("all", 100), ("some", 3)):
        monkeypatch.setattr(tfidf, "_TRIED", tried)
        (tmp_path / name).mkdir()
        tfidf.fit(labelled, str(tmp_path / name))
    logs = {name: (tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("all", "some")}
    chosen = {name: max(map(json.loads, lines), key=lambda line: line["auroc"])["c"] for name, lines in logs.items()}
    assert chosen["all"] == chosen["some"] and logs["all"] != logs["some"]
    whole, part = (load(tmp_path / name / "predictions-test.npz") for name in ("all", "some"))
    np.testing.assert_array_equal(whole.logits, part.logits)
    assert evaluate(whole)["auroc"] > 0.8 and evaluate(whole)["labels_scored"] == 8


def test_its_figures_are_those_of_any_run(labelled, tmp_path):
    """Calibration, scaling and thresholds by the validation notes, strata by the training notes."""
    tfidf.fit(labelled, str(tmp_path))
    test, validation = (load(tmp_path / f"predictions-{split}.npz") for split in ("test", "validation"))
    train = builders.load(labelled.data.dir, "labelled").split("train")
    counts = np.bincount(np.concatenate([train[i]["label"] for i in range(len(train))]), minlength=8)
    assert test.train_positives.tolist() == validation.train_positives.tolist() == counts.tolist()
    found = json.loads((tmp_path / "metrics-test.json").read_text())
    assert found["labels_10_99"] == ((counts >= 10) & (counts < 100)).sum() > 0
    expected = calibration.evaluate(test) | scaling.evaluate(test, validation) | thresholds.evaluate(validation, test)
    assert expected.items() <= found.items()


def test_notes_without_an_outcome_are_refused(small, tmp_path):
    with pytest.raises(UserError, match="dataset notes: is of kind lm; TF-IDF is for outcomes of whole notes"):
        tfidf.fit(config_of(small, "notes"), str(tmp_path))


@pytest.mark.parametrize("c", [(), (1.0, 0.0)])
def test_a_strength_that_is_none_is_refused(small, tmp_path, c):
    with pytest.raises(UserError, match=r"config.tfidf.c is \(.*\); give one value or more, each above 0"):
        tfidf.fit(config_of(small, "outcome", c), str(tmp_path))
