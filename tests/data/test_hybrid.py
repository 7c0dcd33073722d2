"""The hybrid cohort: the tables of the demo as they are, and notes that are real prose with every quirk."""

import csv
import gzip
import json
import sys
from collections import Counter

import pytest

from jaxlora.data.synthetic import synthesize

csv.field_size_limit(sys.maxsize)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("cohort") / "hybrid"
    synthesize("hybrid", folder, patients=100, seed=0, source=shared_data)
    return folder


@pytest.fixture(scope="module")
def notes(hybrid):
    with gzip.open(hybrid / "NOTEEVENTS.csv.gz", "rt", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def key(hybrid):
    with (hybrid / "answers.jsonl").open() as file:
        return [json.loads(line) for line in file]


def test_the_tables_are_those_of_the_demo(hybrid, shared_data):
    demo = shared_data / "mimiciii-demo-1.4"
    for path in demo.glob("*.csv"):
        if path.name != "NOTEEVENTS.csv":
            assert (hybrid / path.name).read_bytes() == path.read_bytes()
    with gzip.open(hybrid / "NOTEEVENTS.csv.gz", "rt") as file:
        assert file.readline().replace('"', "") == (demo / "NOTEEVENTS.csv").read_text()


def test_the_key_has_every_admission_and_the_outcomes_of_the_tables(hybrid, key):
    with (hybrid / "ADMISSIONS.csv").open(newline="") as file:
        stays = {row["hadm_id"]: row for row in csv.DictReader(file)}
    assert sorted(line["admission"] for line in key) == sorted(stays) and len(stays) == 129
    for line in key:
        stay, answer = stays[line["admission"]], line["correct"]
        died = stay["hospital_expire_flag"] == "1"
        assert line["patient"] == stay["subject_id"]
        if answer["fate"] == "kept":
            assert answer["mor_unfiltered"] == died and (answer["los"] is None) == died
    counts = Counter(line["correct"]["fate"] for line in key)
    assert counts["kept"] > 110 and set(counts) == {
        "kept",
        "no summary",
        "no report",
        "no complaint, illness or history",
    }


def test_the_notes_are_visit_notes_under_the_headings_of_a_summary(notes, shared_data):
    summaries = [row for row in notes if row["category"] == "Discharge summary"]
    headings = ("Chief Complaint:", "History of Present Illness:", "Past Medical History:", "Physical Exam:")
    assert sum(all(f"\n{heading}\n" in row["text"] for heading in headings) for row in summaries) > 90
    assert sum("[**Known lastname" in row["text"] for row in summaries) > 90
    with (shared_data / "clinical-visit-note-corpus/aci-bench/valid.csv").open(newline="") as file:
        sentence = "chest pain or dyspnea on exertion"
        assert any(sentence in row["note"] for row in csv.DictReader(file))
    assert any(sentence in row["text"] for row in summaries)


def test_every_quirk_is_there(notes):
    summaries = [row for row in notes if row["category"] == "Discharge summary"]
    kinds = {}
    for row in summaries:
        kinds.setdefault(row["hadm_id"], []).append(row["description"])
    assert ["Addendum"] in kinds.values() and ["Report", "Report"] in kinds.values() and kinds[""] == ["Report"]
    assert "1" in {row["iserror"] for row in summaries} and "" in {row["text"] for row in summaries}
    assert max(Counter(row["text"] for row in summaries).values()) == 2
    assert any("\r\n" in row["text"] for row in summaries) and any(len(row["text"]) > 60_000 for row in summaries)
    assert any('"fine"' in row["text"] for row in summaries) and any("[** **]" in row["text"] for row in summaries)
    assert len({row["category"] for row in notes}) == 15
    for wording in ("pt expired", "had died", "time of death", "Patient deceased", "passed away", "pronounced expired"):
        assert any(wording in row["text"] for row in summaries)
