"""The labels of the paper's tasks."""

import csv
import pickle
from collections import Counter
from datetime import datetime, timedelta

import pytest
from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.data import tasks
from jaxlora.data.examples import keyed, split_of
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.mimic4 import Mimic4
from jaxlora.data.notes import AdmissionNote
from jaxlora.errors import UserError

SHARES = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})
KEY = bytes(32)
TRAIN = [str(i) for i in range(99) if split_of(str(i), **SHARES) == "train"]
TEST = [str(i) for i in range(99) if split_of(str(i), **SHARES) == "test"]


def cohort(release, *stays, mode="correct", core_splits="", beep="", gem="", gem_procedures=""):
    """Admissions 1, 2, … of the given (patient, died, days), with a note each."""
    begin = datetime(2101, 1, 1)
    with (release.folder / "admissions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("SUBJECT_ID HADM_ID ADMITTIME DISCHTIME ADMISSION_TYPE HOSPITAL_EXPIRE_FLAG DIAGNOSIS".split())
        writer.writerow(["no note", 99, "2101-01-01", "2101-01-01", "URGENT", 0, ""])
        for i, (patient, died, days) in enumerate(stays, start=1):
            writer.writerow([patient, i, begin, begin + timedelta(days=days), "URGENT", int(died), ""])
    config = default()
    config.split = SHARES
    files = {"core_splits": core_splits, "beep": beep, "gem": gem, "gem_procedures": gem_procedures}
    config.update(mode=mode, **{field: str(path) for field, path in files.items()})
    found = tasks.cohort(release, config, KEY)
    return found, [AdmissionNote(str(i), stay[0], f"CHIEF COMPLAINT: {i}") for i, stay in enumerate(stays, start=1)]


def make(found, name, notes):
    flow = Counter()
    task, examples = tasks.make(found, name, notes, flow)
    return task, examples, flow


def names(task, examples):
    return [[task.labels[i] for i in example.label] for example in examples]


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
    found, notes = cohort(Mimic3(tmp_path), ("1", True, 3.0), ("2", False, 3.0), ("3", True, 1.0))
    notes[2] = AdmissionNote("3", "3", "PRESENT ILLNESS: pt died")
    task, examples, flow = make(found, "mor", notes)
    assert (task.name, task.kind, task.labels) == ("mor", "binary", ("survived", "died"))
    assert [e.label for e in examples] == [1, 0] and flow == {"admissions: the note tells the death": 1}
    assert examples[0].id == keyed(KEY, "admission:1") and examples[0].patient == keyed(KEY, "patient:1")
    assert examples[0].split == split_of("1", **SHARES)
    task, examples, flow = make(found, "mor_unfiltered", notes)
    assert task.name == "mor_unfiltered" and [e.text for e in examples] == [n.text for n in notes] and not flow
    assert [e.label for e in examples] == [1, 0, 1]


@pytest.mark.parametrize(
    ("days", "label"),
    [(-0.5, 0), (3.0, 0), (3.04, 0), (3.06, 1), (7.0, 1), (7.1, 2), (14.0, 2), (14.05, 2), (14.06, 3)],
)
def test_stays(days, label):
    assert tasks.stay(days) == label


@pytest.mark.parametrize(("mode", "classes"), [("correct", [2]), ("paper", [2, 0])])
def test_length_of_stay_is_of_survivors(tmp_path, mode, classes):
    found, notes = cohort(Mimic3(tmp_path), ("1", True, 3.0), ("2", False, 8.0), ("3", False, -0.25), mode=mode)
    task, examples, flow = make(found, "los", notes)
    assert task.kind == "multiclass" and task.name == ("los" if mode == "correct" else "los_paper")
    assert [e.label for e in examples] == classes and task.labels[2] == "7-14 days"
    negative = {"admissions: a stay that ends before it begins": 1} if mode == "correct" else {}
    assert flow == {"admissions: died in hospital": 1} | negative


def test_codes_of_training_patients_are_the_labels(tmp_path):
    (tmp_path / "DIAGNOSES_ICD.csv").write_text(
        "hadm_id,icd9_code\n1,V4581\n99,486\n1,4019\n1,4011\n2,4019\n2,E8889\n2,\n"
    )
    (tmp_path / "PROCEDURES_ICD.csv").write_text("hadm_id,icd9_code\n1,0066\n2,0066\n3,0331\n3,3310\n")
    stays = (TRAIN[0], False, 1.0), (TEST[0], False, 1.0), (TRAIN[1], False, 1.0)
    found, notes = cohort(Mimic3(tmp_path), *stays)
    task, examples, flow = make(found, "diag", notes)
    assert task.labels == ("401", "V45") and names(task, examples) == [["V45", "401"], ["401"]]
    assert flow == {"admissions: no code": 1, "codes: of no training patient": 1}
    task, examples, _ = make(found, "proc", notes)
    assert task.labels == ("006", "033", "331") and names(task, examples) == [["006"], ["006"], ["033", "331"]]

    found, notes = cohort(Mimic3(tmp_path), *stays, mode="paper")
    task, examples, flow = make(found, "diag", notes)
    assert task.name == "diag_paper" and task.labels == ("V458", "486", "401", "E888")
    assert names(task, examples) == [["V458", "401"], ["401", "E888"]] and flow["admissions: no code"] == 1
    task, examples, _ = make(found, "proc", notes)
    assert task.labels == ("66", "331") and names(task, examples) == [["66"], ["66"], ["331"]]


def test_two_versions_of_the_icd_are_kept_apart_or_mapped(tmp_path):
    (tmp_path / "diagnoses_icd.csv").write_text(
        "hadm_id,icd_code,icd_version\n1,4019,9\n2,I10,10\n2,Z9989,10\n3,486,9\n"
    )
    (tmp_path / "procedures_icd.csv").write_text("hadm_id,icd_code,icd_version\n1,0066,9\n2,0016070,10\n")
    (tmp_path / "gem.txt").write_text("I10 4019 10000\nZ9989 NoDx 11000\n")
    (tmp_path / "pcs.txt").write_text("0016070 0234 10000\n")
    stays = [(patient, False, 1.0) for patient in TRAIN[:3]]
    found, notes = cohort(Mimic4(tmp_path), *stays, gem=tmp_path / "gem.txt", gem_procedures=tmp_path / "pcs.txt")
    made = {name: make(found, name, notes) for name in ("diag9", "diag10", "proc9", "proc10", "diag", "proc")}
    assert {name: task.name for name, (task, _, _) in made.items()} == {name: name for name in made}
    assert {name: names(task, examples) for name, (task, examples, _) in made.items()} == {
        "diag9": [["401"], ["486"]],
        "diag10": [["I10", "Z99"]],
        "proc9": [["006"]],
        "proc10": [["001"]],
        "diag": [["401"], ["401"], ["486"]],
        "proc": [["006"], ["023"]],
    }
    assert made["diag"][2]["codes: without a counterpart in ICD-9"] == 1


def test_a_mapping_of_other_codes_is_refused(tmp_path):
    (tmp_path / "diagnoses_icd.csv").write_text("hadm_id,icd_code,icd_version\n1,4019,9\n2,I10,10\n")
    (tmp_path / "pcs.txt").write_text("0016070 0234 10000\n")
    found, notes = cohort(Mimic4(tmp_path), *[(p, False, 1.0) for p in TRAIN[:2]], gem=tmp_path / "pcs.txt")
    with pytest.raises(
        UserError, match="pcs.txt: has none of the ICD-10 codes of the diagnoses; set gem to the GEM of"
    ):
        make(found, "diag", notes)
    (tmp_path / "diagnoses_icd.csv").write_text("hadm_id,icd_code,icd_version\n1,4019,9\n2,486,9\n")
    assert names(*make(found, "diag", notes)[:2]) == [["401"], ["486"]]


def test_published_lists_leave_patients_out(tmp_path):
    for name, patient in (("train", 1), ("val", 2), ("test", 3)):
        (tmp_path / f"mimic_{name}.csv").write_text(f"SUBJECT_ID\n{patient}\n")
    stays = [(str(i), False, 1.0) for i in range(1, 5)]
    found, notes = cohort(Mimic3(tmp_path), *stays, core_splits=tmp_path)
    _, examples, flow = make(found, "mor", notes)
    assert [e.split for e in examples] == ["train", "validation", "test"]
    assert flow == {"admissions: a patient in none of the published lists": 1}
    _, examples, _ = make(cohort(Mimic4(tmp_path), *stays, core_splits=tmp_path)[0], "mor", notes)
    assert [e.split for e in examples] == [split_of(patient, **SHARES) for patient, _, _ in stays]


@pytest.mark.parametrize("mode", ["correct", "paper"])
def test_beep_labels(tmp_path, mode):
    labels = {3: (0, "test"), 1: (1, "val"), 2: (1, "train"), 99: (1, "train"), 77: (0, "train")}
    (tmp_path / "pmv_labels.pkl").write_bytes(pickle.dumps(labels))
    stays = [(str(i), False, 1.0) for i in range(1, 5)]
    found, notes = cohort(Mimic3(tmp_path), *stays, mode=mode, beep=tmp_path / "pmv_labels.pkl")
    notes[1] = AdmissionNote("2", "2", "PRESENT ILLNESS: pt died")
    task, examples, flow = make(found, "pmv", notes)
    assert task.kind == "binary" and task.labels == ("<=7 days", ">7 days")
    counted = {"labels: read": 5, "labels: an admission without a note": 1, "labels: no admission": 1}
    counted["admissions: not in the label file"] = 1
    if mode == "paper":  # its own splits, and the texts of the mortality task
        assert [(e.label, e.split) for e in examples] == [(0, "test"), (1, "validation")]
        counted["admissions: the note tells the death"] = 1
    else:
        assert [(e.label, e.split) for e in examples] == [
            (x, split_of(p, **SHARES)) for p, x in (("3", 0), ("1", 1), ("2", 1))
        ]
    assert flow == counted


def test_what_a_cohort_can_give(tmp_path):
    def given(release, **options):
        found = cohort(release, **options)[0]
        return tasks.available(release, found.config)

    assert given(Mimic3(tmp_path)) == ("mor", "mor_unfiltered", "los", "diag", "proc")
    with pytest.raises(UserError, match="mimic3_admission/pmv: cannot be made without the table PROCEDUREEVENTS_MV"):
        make(cohort(Mimic3(tmp_path))[0], "pmv", [])
    with pytest.raises(UserError, match="mimic4_admission/diag_paper: cannot be made without config.gem, to map"):
        make(cohort(Mimic4(tmp_path), mode="paper")[0], "diag", [])
    assert "pmv" in given(Mimic3(tmp_path), beep="pmv_labels.pkl", mode="paper")
    (tmp_path / "PROCEDUREEVENTS_MV.csv").touch()
    assert "pmv" in given(Mimic3(tmp_path)) and "pmv" not in given(Mimic3(tmp_path), mode="paper")
    ours = ("mor", "mor_unfiltered", "los", "diag9", "diag10", "proc9", "proc10")
    assert given(Mimic4(tmp_path), beep="pmv_labels.pkl") == ours
    (tmp_path / "procedureevents.csv").touch()
    everything = given(Mimic4(tmp_path), gem="gem.txt", gem_procedures="pcs.txt")
    assert set(everything) == {*ours, "pmv", "diag", "proc"} == set(tasks.TASKS["mimic4"])
