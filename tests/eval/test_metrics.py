"""The metrics against scikit-learn, and where its own averages do not apply."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxlora.eval import metrics
from jaxlora.eval.predictions import Predictions


def predictions(kind, labels, logits, count):
    ids = np.array([f"{i:016x}" for i in range(len(logits))])
    names = tuple(f"label {i}" for i in range(count))
    return Predictions(kind, names, ids, ids, labels, logits.astype(np.float32))


@pytest.fixture
def classes():
    """Labels of four classes, and logits that say something of them."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 300, p=[0.6, 0.2, 0.15, 0.05])
    return labels, (rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[labels]).astype(np.float32)


@pytest.fixture
def several():
    """Several labels a note: three of five with both classes, one always there, one never."""
    rng = np.random.default_rng(1)
    truth = (rng.random((200, 5)) < [0.5, 0.1, 0.3, 0, 0]).astype(np.uint8)
    truth[:, 3] = 1
    return truth, (rng.normal(size=(200, 5)) + truth).astype(np.float32)


def test_softmax():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]], np.float32)
    np.testing.assert_allclose(metrics.softmax(logits), [[0.25, 0.75], [1, 0]], atol=1e-7)


def test_binary(classes):
    labels, logits = (classes[0] > 0).astype(np.int64), classes[1][:, :2] * [1, -1]
    found = metrics.evaluate(predictions("binary", labels, logits, 2))
    positive = metrics.softmax(logits.astype(np.float32))[:, 1]
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(labels, positive), abs=1e-12)
    assert found["auprc"] == pytest.approx(sk.average_precision_score(labels, positive), abs=1e-12)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, positive > 0.5))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, positive > 0.5, average="macro"))
    assert (found["n"], found["labels_scored"]) == (300, 1)


@pytest.mark.parametrize(("name", "average"), [("auroc", "ovr"), ("auroc_ovo", "ovo")])
def test_multiclass(classes, name, average):
    labels, logits = classes
    found = metrics.evaluate(predictions("multiclass", labels, logits, 4))
    scores = metrics.softmax(logits)
    assert found[name] == pytest.approx(sk.roc_auc_score(labels, scores, multi_class=average), abs=1e-12)
    assert found["labels_scored"] == 4


def test_multiclass_auprc_and_f1(classes):
    labels, logits = classes
    found = metrics.evaluate(predictions("multiclass", labels, logits, 4))
    scores, chosen = metrics.softmax(logits), logits.argmax(axis=1)
    assert found["auprc"] == pytest.approx(sk.average_precision_score(np.eye(4)[labels], scores), abs=1e-12)
    assert found["f1"] == pytest.approx(sk.f1_score(labels, chosen, average="macro"))
    assert found["f1_micro"] == found["accuracy"] == pytest.approx(np.mean(labels == chosen))


def test_a_class_that_is_absent_is_left_out(classes):
    labels, logits = classes
    present = labels != 3
    labels, logits = labels[present], logits[present]
    found = metrics.evaluate(predictions("multiclass", labels, logits, 4))
    scores = metrics.softmax(logits)
    each = [sk.roc_auc_score(labels == c, scores[:, c]) for c in range(3)]
    pairs = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pair = (labels == a) | (labels == b)
        pairs += [sk.roc_auc_score(labels[pair] == c, scores[pair, c]) for c in (a, b)]
    assert found["auroc"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found["auroc_ovo"] == pytest.approx(np.mean(pairs), abs=1e-12)
    assert (found["labels_scored"], found["labels_skipped"]) == (3, 1)


def test_one_class_alone_cannot_be_ranked():
    found = metrics.evaluate(predictions("multiclass", np.zeros(5, np.int64), np.ones((5, 3)), 3))
    assert np.isnan(found["auroc"]) and np.isnan(found["auprc"]) and np.isnan(found["auroc_ovo"])
    assert found["labels_scored"] == 0


def test_multilabel_skips_labels_without_both_classes(several):
    truth, logits = several
    found = metrics.evaluate(predictions("multilabel", truth, logits, 5))
    assert metrics.scorable(truth).tolist() == [0, 1, 2] and found["labels_scored"] == 3
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth[:, :3], logits[:, :3], average="macro"), abs=1e-12)
    expected = sk.average_precision_score(truth[:, :3], logits[:, :3], average="macro")
    assert found["auprc"] == pytest.approx(expected, abs=1e-12)
    assert found["f1"] == pytest.approx(sk.f1_score(truth[:, :3], logits[:, :3] > 0, average="macro"))
    assert found["f1_micro"] == pytest.approx(sk.f1_score(truth, logits > 0, average="micro"))


def test_multilabel_ranks_each_label_by_its_own_logit(several):
    truth, logits = several
    shifted = logits + np.random.default_rng(2).normal(size=(200, 1)) * 9  # a softmax over the labels would not see it
    found = metrics.evaluate(predictions("multilabel", truth, shifted, 5))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth[:, :3], shifted[:, :3].astype(np.float32)), abs=1e-6)


def test_micro_is_over_all_pairs(several, classes):
    truth, logits = several
    found = metrics.evaluate(predictions("multilabel", truth, logits, 5))
    assert found["auroc_micro"] == pytest.approx(sk.roc_auc_score(truth, logits, average="micro"), abs=1e-12)
    assert found["auprc_micro"] == pytest.approx(sk.average_precision_score(truth, logits, average="micro"), abs=1e-12)
    assert found["labels_skipped"] == 2
    labels, logits = classes
    found, scores = metrics.evaluate(predictions("multiclass", labels, logits, 4)), metrics.softmax(logits)
    expected = sk.roc_auc_score(labels, scores, multi_class="ovr", average="micro")
    assert found["auroc_micro"] == pytest.approx(expected, abs=1e-12)


def test_one_vs_one_average_precision(classes):
    labels, logits = classes
    scores, pairs = metrics.softmax(logits), []
    for a in range(4):
        for b in set(range(4)) - {a}:
            pair = (labels == a) | (labels == b)
            pairs.append(sk.average_precision_score(labels[pair] == a, scores[pair, a]))
    found = metrics.evaluate(predictions("multiclass", labels, logits, 4))
    assert found["auprc_ovo"] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_as_published_several_labels_are_ranked_by_a_softmax_over_them(several):
    truth, logits = several
    found = metrics.evaluate(predictions("multilabel", truth, logits, 5))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for name, of in (("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)):
        assert found[f"{name}_paper"] == pytest.approx(of(truth[:, :3], scores[:, :3], average="macro"), abs=1e-12)
        assert found[f"{name}_paper"] != found[name]


def test_strata_by_the_labels_frequency_in_training(several):
    truth, logits = several
    counts = np.array([9, 10, 99, 1000, 0])
    p = dataclasses.replace(predictions("multilabel", truth, logits, 5), train_positives=counts)
    found = metrics.evaluate(p)
    assert found["auroc_lt10"] == pytest.approx(sk.roc_auc_score(truth[:, 0], logits[:, 0]), abs=1e-12)
    expected = np.mean([sk.average_precision_score(truth[:, c], logits[:, c]) for c in (1, 2)])
    assert found["auprc_10_99"] == pytest.approx(expected, abs=1e-12)
    assert [found[f"labels_{name}"] for name in metrics.STRATA] == [1, 2, 0, 0]
    assert np.isnan(found["auroc_100_999"]) and np.isnan(found["auprc_ge1000"])


def test_batch_mean_perplexity():
    nll, tokens = np.array([10.0, 1.0, 6.0]), np.array([2.0, 8.0, 3.0])
    assert metrics.batch_mean_perplexity(nll, tokens, 2) == pytest.approx(np.exp((11 / 10 + 6 / 3) / 2))
    assert metrics.batch_mean_perplexity(nll, tokens, 3) == pytest.approx(metrics.perplexity(nll, tokens))


def test_perplexity_weighs_every_token_the_same():
    nll, tokens = np.array([10.0, 1.0]), np.array([2.0, 8.0])
    assert metrics.perplexity(nll, tokens) == pytest.approx(np.exp(11 / 10))


def test_a_language_model():
    ids = np.array(["a", "b"])
    nll, base_nll, tokens = (np.array(x, np.float32) for x in ([10, 1], [12, 2], [2, 8]))
    p = Predictions("lm", (), ids, ids, nll=nll, base_nll=base_nll, tokens=tokens)
    expected = {"perplexity": np.exp(1.1), "base_perplexity": np.exp(1.4), "tokens": 10, "n": 2}
    assert metrics.evaluate(p) == pytest.approx(expected)
    assert metrics.evaluate(p, batch_size=1)["perplexity_paper"] == pytest.approx(np.exp((5 + 1 / 8) / 2))
