"""The labels of the paper's tasks."""

from collections import Counter

import pytest
from ml_collections import ConfigDict

from jaxlora.data import tasks
from jaxlora.data.examples import keyed, split_of
from jaxlora.data.mimic import Admission
from jaxlora.data.notes import AdmissionNote

SHARES = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})
KEY = bytes(32)
TRAIN = [str(i) for i in range(99) if split_of(str(i), SHARES) == "train"]
TEST = [str(i) for i in range(99) if split_of(str(i), SHARES) == "test"]


def cohort(folder, *stays):
    """Admissions 1, 2, … of the given (patient, died, days), with a note each."""
    admissions = {str(i): Admission(p, newborn=False, died=d, days=t) for i, (p, d, t) in enumerate(stays, start=1)}
    notes = [AdmissionNote(i, a.patient, f"CHIEF COMPLAINT: {i}") for i, a in admissions.items()]
    return tasks.Cohort(folder, admissions, SHARES, KEY), notes


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("PHYSICAL EXAM: cold. Pt expired\n\nX", "PHYSICAL EXAM: cold. \n\nX"),
        ("MEDICATION ON ADMISSION: patient deceased", "MEDICATION ON ADMISSION:  "),
        ("PRESENT ILLNESS: The patient had passed away", None),
        ("PRESENT ILLNESS: she expired", None),
        ("PRESENT ILLNESS: pronounced expired", None),
        ("SOCIAL HISTORY: Time of death unknown", None),
        ("FAMILY HISTORY: father died at 60", "FAMILY HISTORY: father died at 60"),
    ],
)
def test_death_wording(text, kept):
    result = tasks.without_death(text)
    assert (result and result.split()) == (kept and kept.split())


def test_mortality(tmp_path):
    table, notes = cohort(tmp_path, ("1", True, 3.0), ("2", False, 3.0), ("3", True, 1.0))
    notes[2] = AdmissionNote("3", "3", "PRESENT ILLNESS: pt died")
    flow = Counter()
    task, examples = tasks.mortality(table, notes, flow)
    assert task.kind == "binary" and task.labels == ("survived", "died")
    assert [e.label for e in examples] == [1, 0] and flow == {"admissions: the note tells the death": 1}
    assert examples[0].patient == keyed(KEY, "patient:1") and examples[0].split == split_of("1", SHARES)


@pytest.mark.parametrize(
    ("days", "label"), [(-0.5, 0), (3.0, 0), (3.04, 0), (3.06, 1), (7.0, 1), (7.1, 2), (14.0, 2), (14.06, 3)]
)
def test_stays(days, label):
    assert tasks.stay(days) == label


def test_length_of_stay_is_of_survivors(tmp_path):
    table, notes = cohort(tmp_path, ("1", True, 3.0), ("2", False, 8.0))
    flow = Counter()
    task, examples = tasks.length_of_stay(table, notes, flow)
    assert task.kind == "multiclass" and [task.labels[e.label] for e in examples] == ["7-14 days"]
    assert flow == {"admissions: died in hospital": 1}


@pytest.mark.parametrize(
    ("code", "category"), [("4019", "401"), ("V4581", "V45"), ("E8889", "E888"), ("0066", "006"), ("486", "486")]
)
def test_categories(code, category):
    assert tasks.category(code) == category


def test_codes_of_training_patients_are_the_labels(tmp_path):
    (tmp_path / "DIAGNOSES_ICD.csv").write_text("hadm_id,icd9_code\n1,4019\n1,4011\n1,V4581\n2,4019\n2,E8889\n")
    (tmp_path / "PROCEDURES_ICD.csv").write_text("hadm_id,icd9_code\n1,0066\n2,0066\n3,0066\n")
    table, notes = cohort(tmp_path, (TRAIN[0], False, 1.0), (TEST[0], False, 1.0), (TRAIN[1], False, 1.0))
    flow = Counter()
    task, examples = tasks.diagnoses(table, notes, flow)
    assert task.labels == ("401", "V45") and [e.label for e in examples] == [(0, 1), (0,)]
    assert flow == {"admissions: no code": 1, "codes: of no training patient": 1}
    assert tasks.procedures(table, notes, Counter())[0].labels == ("006",)


def test_the_corpus_is_every_note_but_errors(tmp_path):
    (tmp_path / "NOTEEVENTS.csv").write_text(
        f"row_id,subject_id,hadm_id,iserror,text\n1,{TRAIN[0]},,,a\n2,{TEST[0]},5,,b\n3,7,5,1,c\n4,7,5,,\n5,,,,e\n"
    )
    table, _ = cohort(tmp_path)
    flow = Counter()
    task, examples = tasks.corpus(table, flow)
    for _ in range(2):
        assert [(e.text, e.split, e.label) for e in examples] == [("a", "train", None), ("b", "test", None)]
    assert task.kind == "lm"
    assert flow == {"notes: read": 5, "notes: flagged as an error": 1, "notes: no text": 1, "notes: no patient": 1}
