"""What the words of notes tell: a planted leak is found, chance is not, and scikit-learn agrees."""

import re

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from jaxlora.audit import leakage, words
from jaxlora.data import builders
from jaxlora.data.examples import Task


def rows(folder, name="mor"):
    data = builders.load(folder, name)
    made = {name: [split[i] for i in range(len(split))] for name in data.splits for split in [data.split(name)]}
    return data.task, made["train"], made["test"]


def probe(task, train, test, smallest=20):
    counted = words.count(row["text"] for row in train + test)
    samples = []
    for start, of in ((0, train), (len(train), test)):
        truth = leakage.truth(task, [row["label"] for row in of])
        patients = np.asarray([row["patient"] for row in of], "S")
        samples.append(leakage.Sample(np.arange(start, start + len(of)), patients, truth))
    return leakage.probe(task, counted, *samples, smallest)


@pytest.fixture(scope="module")
def clean(mortality):
    return rows(mortality())


@pytest.fixture(scope="module")
def leaking(mortality):
    return rows(mortality("patient expired"))


def test_a_planted_leak_is_found(leaking):
    found = probe(*leaking, smallest=1)
    assert "'expired' is among the heaviest words of died" in found.reasons
    assert any(reason.startswith("'patient expired' gives died away") for reason in found.reasons)
    assert "expired" in [word for word, _ in found.top["died"]]
    (row,) = [row for row in found.outcome if row["word"] == "patient expired"]
    has = np.asarray(["patient expired" in row["text"] for row in leaking[2]])
    died = np.asarray([row["label"] for row in leaking[2]]) == 1
    counts = [int(x.sum()) for x in (has & died, died, has & ~died, ~died)]
    assert [row[name] for name in ("with_label", "of_label", "without_label", "of_others")] == counts
    assert row["label"] == "died" and row["auroc"] == pytest.approx(roc_auc_score(died, has))


def test_counts_of_few_patients_are_not_told(leaking):
    task, train, test = leaking
    (row,) = [row for row in probe(task, train, test, smallest=1).outcome if row["word"] == "patient expired"]
    count, of = row["with_label"], row["of_label"]
    assert 1 < count < of < row["of_others"] and row["without_label"] == 0

    def at(smallest, test=test):
        return next(r for r in probe(task, train, test, smallest).outcome if r["word"] == "patient expired")

    assert at(count) == row
    hidden = {"with_label": f"<{count + 1}", "auroc": None, "odds_ratio": None}
    assert at(count + 1) == row | hidden
    # The size of the other class would tell that of this one, with all test notes.
    hidden = {
        "with_label": f"<{of + 1}",
        "of_label": f"<{of + 1}",
        "of_others": None,
        "auroc": None,
        "odds_ratio": None,
    }
    assert at(of + 1) == row | hidden
    assert at(2, [dict(r, patient="1" * 16) if r["label"] else r for r in test])["with_label"] == "<2"  # one patient's


def test_nothing_is_found_in_clean_notes(clean):
    found = probe(*clean)
    assert found.reasons == [] and "bedbound" in [word for word, _ in found.top["died"]]
    assert {row["word"] for row in found.outcome} == {"died"}
    assert found.train == 300 and found.test == 200 and found.labels == ("survived", "died")


def test_a_few_notes_prove_nothing(leaking):
    task, train, test = leaking
    of_death = [row for row in train if row["label"] and "patient expired" in row["text"]][:8]
    few = of_death + [row for row in train if not row["label"]][:8]
    assert not [reason for reason in probe(task, few, test).reasons if "heaviest" not in reason]


@pytest.mark.parametrize("leak", ["pt had expired", "pronounced dead", "comfort measures only"])
def test_other_words_that_tell(mortality, leak):
    told = {"pt had expired": "patient expired", "pronounced dead": "pronounced"}.get(leak, "comfort measures")
    assert any(reason.startswith(f"'{told}' gives died away") for reason in probe(*rows(mortality(leak))).reasons)


def test_scores_are_those_of_scikit_learn(clean):
    task, train, test = clean
    found = probe(task, train, test, smallest=1)
    made = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[^\W\d_]{2,}", min_df=3)
    labels, truth = ([row["label"] for row in of] for of in (train, test))
    features = made.fit_transform([row["text"] for row in train])
    model = LogisticRegression(tol=1e-8, max_iter=1000).fit(features, labels)
    scores = model.decision_function(made.transform([row["text"] for row in test]))
    assert found.scores["words"]["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=0.005)
    assert found.scores["words"]["auprc"] == pytest.approx(average_precision_score(truth, scores), abs=0.005)
    heavy = np.argsort(-model.coef_[0])[:3]
    assert [word for word, _ in found.top["died"]][:3] == list(made.get_feature_names_out()[heavy])
    assert found.scores["prevalence"] == {"auroc": 0.5, "auprc": pytest.approx(np.mean(truth))}

    lengths = [np.log1p([len(re.findall(r"[^\W\d_]+", row["text"])) for row in of]) for of in (train, test)]
    scale = StandardScaler().fit(lengths[0][:, None])
    seen, held = (np.hstack([z, z**2]) for z in (scale.transform(of[:, None]) for of in lengths))
    scores = LogisticRegression().fit(seen, labels).decision_function(held)
    assert found.scores["length"]["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)


def test_words_of_few_patients_and_digits_are_not_told(leaking):
    task, train, test = leaking
    for row in train:
        row["text"] += " surname smith42" if int(row["patient"], 16) < 10 else ""
    few, most = probe(task, train, test, smallest=11), probe(task, train, test, smallest=1)
    told = [word for found in (few, most) for words in found.top.values() for word, _ in words]
    assert "expired" in told and all(word.isalpha() for word in told)
    notes = {}
    for row in train:
        for word in set(re.findall(r"[^\W\d_]+", row["text"])):
            notes.setdefault(word, set()).add(row["patient"])
    assert all(len(notes[word]) >= 11 for words in few.top.values() for word, _ in words)
    assert len(notes["surname"]) == 10 and "surname" not in str(few)


def test_a_patients_many_notes_count_once(clean):
    task, train, test = clean
    many = [dict(row, patient="1" * 16, text=row["text"] + " familyname") if row["label"] else row for row in train]
    assert "familyname" not in str(probe(task, many, test, smallest=2).top)
    each = [dict(row, text=row["text"] + " familyname") if row["label"] else row for row in train]
    assert "familyname" in str(probe(task, each, test, smallest=2).top)


def test_several_classes(clean):
    _, train, test = clean
    task = Task("los", "multiclass", ("short", "long", "never"))
    train, test = (
        [dict(row, label=i % 2, text=f"{row['text']} {('brief', 'lasting')[i % 2]}") for i, row in enumerate(of)]
        for of in (train, test)
    )
    found = probe(task, train, test)
    assert found.scores["words"]["auroc"] > 0.95 and found.top["never"] == []
    assert found.top["short"][0][0] == "brief" and found.top["long"][0][0] == "lasting"
    assert "'brief' alone separates short: AUROC 1.00" in found.reasons


def test_several_labels_a_note(clean):
    _, train, test = clean
    names = tuple(f"L{i:02}" for i in range(60))
    task = Task("diag", "multilabel", names)
    for of in (train, test):
        for i, row in enumerate(of):
            row["label"] = np.asarray([j for j in range(60) if i % (j + 2) == 0], np.int64)
            row["text"] += " diabetes" if i % 3 == 0 else ""
    found = probe(task, train, test)
    assert found.labels == names[:50] and found.of_labels == 60
    assert found.top["L01"][0][0] == "diabetes" and found.reasons == [] and found.outcome == []
    assert found.naming == ["'diabetes' alone separates L01: AUROC 1.00"]


def test_presence_as_a_score():
    rng = np.random.default_rng(0)
    present, truth = rng.integers(0, 2, (60, 5)), rng.integers(0, 2, (60, 3))
    areas = leakage.presence_auroc(present, truth)
    for word in range(5):
        for label in range(3):
            assert areas[word, label] == pytest.approx(roc_auc_score(truth[:, label], present[:, word]))
    assert np.isnan(leakage.presence_auroc(present, np.ones((60, 1), int))).all()


def test_intervals_and_odds():
    for successes, total in ((0, 3), (16, 16), (15, 16), (40, 90)):
        interval = binomtest(successes, total).proportion_ci(method="wilson")
        assert leakage.wilson(np.asarray(successes), np.asarray(total)) == pytest.approx(interval.low, abs=1e-6)
    has, label = np.asarray([1, 1, 1, 0, 0, 0, 0], bool), np.asarray([1, 1, 0, 1, 0, 0, 0], bool)
    assert leakage.odds_ratio(has, label) == pytest.approx(2.5 * 3.5 / (1.5 * 1.5))


def test_notes_without_words():
    counted = words.count(["", "12 ___"])
    assert counted.counts.shape == (2, 0) and counted.lengths.tolist() == [0, 0] and not counted.outcome.any()
