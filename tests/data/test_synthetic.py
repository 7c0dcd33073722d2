"""The generated MIMIC-III: its format, its quirks, and how far its outcomes can be learnt."""

import csv
import hashlib
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from jaxlora.data.synthetic import COLUMNS, lists_of_words, plain_english, write_mimic3


def table(folder, name):
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def columns(rows):
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def test_the_same_seed_makes_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_mimic3(tmp_path / name, patients=60, seed=seed)
    bytes_of = {n: [(tmp_path / n / f"{t}.csv").read_bytes() for t in COLUMNS] for n in "abc"}
    assert bytes_of["a"] == bytes_of["b"] != bytes_of["c"]


def test_the_cohort_of_the_demo_stays_what_its_results_were_measured_on(tmp_path):
    write_mimic3(tmp_path, patients=60, seed=1)
    digest = hashlib.sha256((tmp_path / "NOTEEVENTS.csv").read_bytes()).hexdigest()
    assert digest.startswith("55507df03696558f")


def test_the_format_of_the_full_release(mimic3):
    assert sorted(p.name for p in mimic3.iterdir()) == sorted(f"{name}.csv" for name in COLUMNS)
    first, second = (mimic3 / "ADMISSIONS.csv").read_text().splitlines()[:2]
    assert first.startswith('"ROW_ID","SUBJECT_ID"') and second.startswith("1,10000,100001,")
    assert all("2100" <= row["ADMITTIME"][:4] <= "2200" for row in table(mimic3, "ADMISSIONS"))


def test_every_quirk_is_there(mimic3):
    raw = (mimic3 / "NOTEEVENTS.csv").read_bytes()
    notes, stays = table(mimic3, "NOTEEVENTS"), table(mimic3, "ADMISSIONS")
    assert b"\r\n" in raw and b'""I have had' in raw
    assert any("[**" in row["TEXT"] for row in notes)
    assert {row["DESCRIPTION"] for row in notes if row["CATEGORY"] == "Discharge summary"} == {"Report", "Addendum"}
    assert any(row["ISERROR"] == "1" for row in notes) and any(not row["HADM_ID"] for row in notes)
    assert any(row["ADMISSION_TYPE"] == "NEWBORN" for row in stays)
    assert any(row["ICD9_CODE"].startswith("0") for row in table(mimic3, "PROCEDURES_ICD"))
    texts = Counter(row["TEXT"] for row in notes if len(row["TEXT"]) > 500)
    assert max(texts.values()) == 2
    assert max(Counter(row["SUBJECT_ID"] for row in stays).values()) == 3


def test_notes_are_short(prepared_rows, mimic3):
    texts, _ = columns(prepared_rows("mimic3_admission/mor")["train"])
    assert 350 < np.mean([len(text) for text in texts]) < 600
    assert max(len(row["TEXT"]) for row in table(mimic3, "NOTEEVENTS")) < 1500


def test_classes_are_populated(prepared_rows):
    _, died = columns(prepared_rows("mimic3_admission/mor")["train"])
    assert 0.2 < died.mean() < 0.35
    _, stay = columns(prepared_rows("mimic3_admission/los")["train"])
    assert min(np.bincount(stay, minlength=4)) > 0.1 * len(stay)


def oracle(prepared_rows, name):
    """Returns the test labels, and the probabilities of a TF-IDF logistic regression."""
    texts, labels = columns(prepared_rows(name)["train"])
    test_texts, test_labels = columns(prepared_rows(name)["test"])
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=3, max_iter=1000).fit(vectors.fit_transform(texts), labels)
    return test_labels, model.predict_proba(vectors.transform(test_texts))


def test_mortality_is_learnt_from_wording_not_from_length(prepared_rows):
    died, scores = oracle(prepared_rows, "mimic3_admission/mor")
    assert 0.75 < roc_auc_score(died, scores[:, 1]) < 0.95
    rows = [row for data in prepared_rows("mimic3_admission/mor").values() for row in data]
    by_length = roc_auc_score([row["label"] for row in rows], [len(row["text"]) for row in rows])
    assert max(by_length, 1 - by_length) < 0.7


def test_length_of_stay_is_learnt_from_wording(prepared_rows):
    stay, scores = oracle(prepared_rows, "mimic3_admission/los")
    assert 0.65 < roc_auc_score(stay, scores, multi_class="ovr") < 0.95


@pytest.mark.parametrize("sentences", [1, 7, 2000])
def test_plain_english(sentences):
    documents = plain_english(sentences, seed=3)
    assert documents == plain_english(sentences, seed=3) != plain_english(sentences, seed=4)
    text = " ".join(documents)
    assert "{" not in text and text[0].isupper() and text.rstrip("'").endswith(".")
    if sentences == 2000:
        assert len({word.strip(".,?'").lower() for word in text.split()}) > 300


def test_lists_of_words_hold_the_frequent_words_and_no_sentence():
    notes = ["alpha beta: gamma", "alpha beta: delta", "beta: alpha gamma"]
    documents = lists_of_words(notes, times=40, seed=3)
    assert documents == lists_of_words(notes, times=40, seed=3) != lists_of_words(notes, times=40, seed=4)
    text = " ".join(documents)
    assert (text.count("alpha"), text.count("beta:")) == (40, 40) and "gamma" not in text
    assert text.count("alpha beta: ") < 40 and {"\n", "/", ","} <= set(text)
