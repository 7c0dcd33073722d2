"""TF-IDF and logistic regression against the same model put together otherwise, on prepared notes."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from jaxlora.config import default
from jaxlora.data import builders
from jaxlora.errors import UserError
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
    found = tfidf._logits(features, np.asarray([0, 1, 0, 1]), {"test": features}, 2, 1.0, None)["test"]
    assert (found[:, 0] == 0).all() and (found[:, 1] > 0).tolist() == [False, True, False, True]
    several = np.asarray([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    found = tfidf._logits(features, several, {"test": features}, 3, 1.0, None)["test"]
    assert (found[:, 0] > 0).tolist() == [True, False, True, False]
    np.testing.assert_allclose(found[:, 1:], np.broadcast_to(np.log([1 / 5, 5]), (4, 2)), rtol=1e-6)
    # The third class occurs in no training note, so no note is of it.
    found = tfidf._logits(features, np.asarray([0, 1, 0, 1]), {"test": features}, 3, 1.0, None)["test"]
    assert set(found.argmax(axis=1)) == {0, 1}


def test_notes_without_an_outcome_are_refused(small, tmp_path):
    with pytest.raises(UserError, match="dataset notes: is of kind lm; TF-IDF is for outcomes of whole notes"):
        tfidf.fit(config_of(small, "notes"), str(tmp_path))
