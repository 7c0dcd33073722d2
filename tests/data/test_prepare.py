"""From tables to datasets: own ones, the generated MIMIC-III, and the public demo with generated notes."""

import csv
import json
import logging
import shutil
import subprocess
import sys

import pytest

from jaxlora.config import dataset, default, table
from jaxlora.data import builders, generic
from jaxlora.data.prepare import prepare
from jaxlora.errors import UserError

SECRET = "Sentinel9Q"


def rows(folder, name):
    data = builders.load(folder, name)
    return {name: [split[i] for i in range(len(split))] for name in data.splits for split in [data.split(name)]}


def own(path, count=60, text=SECRET):
    with path.open("w", newline="") as file:
        lines = [(f"id{i}", f"pat{i // 2}", f"{text} {i}", "ab"[i % 2]) for i in range(count)]
        csv.writer(file).writerows([("id", "patient", "text", "label"), *lines])
    config = default()
    config.datasets.mine = dataset("binary", ("a", "b"), t=table(str(path), "text", "id", "patient", "label"))
    return config


def test_own_tables(tmp_path, capsys):
    prepare(own(tmp_path / "t.csv"), tmp_path / "out")
    sizes = builders.load(tmp_path / "out", "mine").splits
    assert sum(sizes.values()) == 60
    printed = capsys.readouterr().out
    assert printed.startswith(f"mine: binary, {sizes['train']} train, ") and printed.count("\n") == 1


def test_outputs_are_private(tmp_path):
    prepare(own(tmp_path / "t.csv"), tmp_path / "out")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "out").rglob("*"))


def test_ids_stay_when_prepared_again_and_differ_under_another_key(tmp_path):
    config = own(tmp_path / "t.csv")
    for out in ("one", "one", "two"):
        prepare(config, tmp_path / out)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(tmp_path / "one" / "id.key", again)
    prepare(config, again)
    assert rows(again, "mine") == rows(tmp_path / "one", "mine") != rows(tmp_path / "two", "mine")


def test_a_failing_prepare_leaves_the_previous_dataset_and_tells_nothing(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    config = own(tmp_path / "t.csv")
    prepare(config, tmp_path / "out")
    before = rows(tmp_path / "out", "mine")
    with (tmp_path / "t.csv").open("a") as file:
        file.write(f"id99,pat99,{SECRET},{SECRET}\n")
    with pytest.raises(UserError, match="row 61: a label outside the 2 declared labels") as caught:
        prepare(config, tmp_path / "out")
    assert rows(tmp_path / "out", "mine") == before
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    told = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert SECRET not in told and "id99" not in told and "pat99" not in told


def test_something_must_be_named(tmp_path):
    with pytest.raises(UserError, match="neither datasets nor mimic3 is set"):
        prepare(default(), tmp_path)


def test_shares_are_checked(tmp_path):
    config = own(tmp_path / "t.csv")
    config.split.test = 1.0
    with pytest.raises(UserError, match="^split: "):
        prepare(config, tmp_path / "out")


def test_names_of_the_mimic_datasets_are_taken(tmp_path, mimic3):
    config = own(tmp_path / "t.csv")
    config.datasets.notes = config.datasets.mine
    config.mimic3 = str(mimic3)
    with pytest.raises(UserError, match="datasets.notes: mimic3 makes a dataset of this name"):
        prepare(config, tmp_path / "out")


def test_generated_mimic_makes_five_datasets(prepared, prepared_rows):
    kinds = {name: builders.load(prepared, name).task.kind for name in ("notes", "mortality", "length_of_stay")}
    assert kinds == {"notes": "lm", "mortality": "binary", "length_of_stay": "multiclass"}
    for name in ("diagnoses", "procedures"):
        data = prepared_rows(name)
        labels = builders.load(prepared, name).task.labels
        assert labels == tuple(sorted(labels)) and all(row["label"].size for row in data["train"])
        assert {i for row in data["train"] for i in row["label"]} == set(range(len(labels)))
    assert any(label.startswith("0") for label in builders.load(prepared, "procedures").task.labels)
    assert {"V45", "E888"} <= set(builders.load(prepared, "diagnoses").task.labels)


def test_no_patient_is_in_two_splits_of_any_dataset(prepared_rows):
    patients = {"train": set(), "validation": set(), "test": set()}
    for name in ("notes", "mortality", "length_of_stay", "diagnoses", "procedures"):
        for split, data in prepared_rows(name).items():
            patients[split] |= {row["patient"] for row in data}
    assert all(patients.values())
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["validation"]
    assert not patients["validation"] & patients["test"]


def test_the_flow_accounts_for_every_note(prepared):
    flow = json.loads((prepared / "flow.json").read_text())
    corpus = flow["notes"]
    sizes = builders.load(prepared, "notes").splits
    assert corpus["notes: read"] == sum(sizes.values()) + corpus["notes: flagged as an error"]
    kept = flow["admission notes"]["admissions: kept"]
    assert kept == sum(builders.load(prepared, "mortality").splits.values()) + sum(flow["mortality"].values())
    assert kept == sum(builders.load(prepared, "length_of_stay").splits.values()) + sum(flow["length_of_stay"].values())
    assert "| mortality | admissions: the note tells the death |" in (prepared / "flow.md").read_text()


def test_no_mortality_note_tells_the_death(prepared_rows):
    assert not [row for data in prepared_rows("mortality").values() for row in data if "expired" in row["text"]]


def test_no_raw_identifier_is_stored(prepared_rows, mimic3):
    with (mimic3 / "ADMISSIONS.csv").open() as file:
        raw = {row[key] for row in csv.DictReader(file) for key in ("SUBJECT_ID", "HADM_ID")}
    stored = {row[key] for data in prepared_rows("mortality").values() for row in data for key in ("id", "patient")}
    assert stored and not stored & raw


def test_a_missing_mimic_table(tmp_path, mimic3):
    shutil.copy(mimic3 / "ADMISSIONS.csv", tmp_path)
    config = default()
    config.mimic3 = str(tmp_path)
    with pytest.raises(UserError, match="no NOTEEVENTS.csv or NOTEEVENTS.csv.gz; copy the MIMIC-III table NOTEEVENTS"):
        prepare(config, tmp_path / "out")


def test_the_public_demo_with_generated_notes(shared_data, mimic3, tmp_path):
    demo = shared_data / "mimiciii-demo-1.4"
    for name in ("ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD"):
        (tmp_path / f"{name}.csv").symlink_to((demo / f"{name}.csv").resolve())
    with (demo / "ADMISSIONS.csv").open() as file:
        stays = [(row["subject_id"], row["hadm_id"]) for row in csv.DictReader(file)]
    with (mimic3 / "NOTEEVENTS.csv").open(newline="") as file:
        notes = [row for row in csv.DictReader(file) if "expired" not in row["TEXT"]]
    summaries = [row for row in notes if row["CATEGORY"] == "Discharge summary" and row["DESCRIPTION"] == "Report"]
    distinct = {row["TEXT"]: row for row in summaries}
    with (tmp_path / "NOTEEVENTS.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(notes[0]))
        writer.writeheader()
        for (patient, admission), row in zip(stays, distinct.values(), strict=False):
            writer.writerow(row | {"SUBJECT_ID": patient, "HADM_ID": admission})
    config = default()
    config.mimic3 = str(tmp_path)
    prepare(config, tmp_path / "out")
    labels = [row["label"] for data in rows(tmp_path / "out", "mortality").values() for row in data]
    assert len(labels) == 129 and sum(labels) == 40
    assert sum(builders.load(tmp_path / "out", "length_of_stay").splits.values()) == 89
    assert "006" in builders.load(tmp_path / "out", "procedures").task.labels


def test_tensorflow_torch_and_jax_are_not_imported(tmp_path):
    own(tmp_path / "t.csv")
    program = """
import sys
from jaxlora.config import dataset, default, table
from jaxlora.data import builders
from jaxlora.data.prepare import prepare

folder, config = sys.argv[1], default()
config.datasets.mine = dataset("binary", t=table(folder + "/t.csv", "text", "id", label="label"))
prepare(config, folder + "/out")
builders.load(folder + "/out", "mine").split("train")[0]
assert not {"tensorflow", "torch", "jax", "flax", "jaxlora.models"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_examples_are_read_anew_at_every_iteration(tmp_path):
    config = own(tmp_path / "t.csv", text="x")
    _, examples = generic.read("mine", config.datasets.mine, config.split, bytes(32))
    assert iter(examples) is not iter(examples) and list(examples) == list(examples)
