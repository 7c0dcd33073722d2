"""From tables to datasets: own ones, the generated MIMIC-III, and the public demo with generated notes."""

import csv
import json
import logging
import re
import shutil
import subprocess
import sys

import pytest

from jaxlora.config import dataset, default, table
from jaxlora.data import builders
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
    with (tmp_path / "t.csv").open("a", newline="") as file:
        file.write(f"id99,pat99,{SECRET},{SECRET}\r\n")
    with pytest.raises(UserError, match="row 61: a label outside the 2 declared labels") as caught:
        prepare(config, tmp_path / "out")
    assert rows(tmp_path / "out", "mine") == before
    hidden = {p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")}
    assert hidden == {".lock", ".clinical_notes.mine"}  # what a run of the same tables would go on from
    prepare(own(tmp_path / "t.csv"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == [".lock"]
    told = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert SECRET not in told and "id99" not in told and "pat99" not in told


def test_something_must_be_named(tmp_path):
    with pytest.raises(UserError, match="neither datasets nor mimic3 nor mimic4 is set"):
        prepare(default(), tmp_path)


def test_shares_are_checked(tmp_path):
    config = own(tmp_path / "t.csv")
    config.split.test = 1.0
    with pytest.raises(UserError, match="^split: "):
        prepare(config, tmp_path / "out")


def test_a_mode_that_does_not_exist(tmp_path):
    config = own(tmp_path / "t.csv")
    config.mode = "papers"
    with pytest.raises(UserError, match="config.mode: no 'papers'; did you mean 'paper'"):
        prepare(config, tmp_path / "out")


CORPUS, MOR, LOS, DIAG, PROC = (
    "clinical_corpus/mimic3",
    *(f"mimic3_admission/{name}" for name in ("mor", "los", "diag", "proc")),
)


def test_generated_mimic_makes_its_tasks_and_a_corpus(prepared, prepared_rows):
    kinds = {name: builders.load(prepared, name).task.kind for name in (CORPUS, MOR, LOS)}
    assert kinds == {CORPUS: "lm", MOR: "binary", LOS: "multiclass"}
    for name in (DIAG, PROC):
        data = prepared_rows(name)
        labels = builders.load(prepared, name).task.labels
        assert labels == tuple(sorted(labels)) and all(row["label"].size for row in data["train"])
        assert {i for row in data["train"] for i in row["label"]} == set(range(len(labels)))
    assert any(label.startswith("0") for label in builders.load(prepared, PROC).task.labels)
    assert {"V45", "E888"} <= set(builders.load(prepared, DIAG).task.labels)


def test_no_patient_is_in_two_splits_of_any_dataset(prepared_rows):
    patients = {"train": set(), "validation": set(), "test": set()}
    for name in (CORPUS, MOR, LOS, DIAG, PROC):
        for split, data in prepared_rows(name).items():
            patients[split] |= {row["patient"] for row in data}
    assert all(patients.values())
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["validation"]
    assert not patients["validation"] & patients["test"]


def test_the_flow_accounts_for_every_note(prepared):
    flow = json.loads((prepared / "flow.json").read_text())
    sizes = {name: sum(builders.load(prepared, name).splits.values()) for name in (CORPUS, MOR, LOS)}
    corpus = flow[CORPUS]
    left_out = corpus["notes: flagged as an error"] + corpus["notes: the same text again"]
    assert left_out > corpus["notes: flagged as an error"] > 0
    assert corpus["notes: read"] == sizes[CORPUS] + left_out
    kept = flow["mimic3_admission"]["admissions: kept"]
    for name in (MOR, LOS):
        left_out = sum(count for what, count in flow[name].items() if what.startswith("admissions: "))
        in_splits = sum(count for what, count in flow[name].items() if what.startswith("examples: "))
        assert kept == sizes[name] + left_out and in_splits == sizes[name]


def test_the_flow_is_told_in_order(prepared):
    text = (prepared / "flow.md").read_text()
    section = text.split("## mimic3_admission/mor\n")[1].split("##")[0].split("\n")
    assert [line.split(" | ")[0] for line in section if ": " in line] == [
        "| &nbsp;&nbsp;− admissions: the note tells the death",
        *(f"| examples: {split}" for split in ("train", "validation", "test")),
    ]
    shared = text.split("## mimic3_admission\n")[1].split("##")[0].split("\n")
    steps = [line for line in shared if ": " in line]
    assert steps[0].startswith("| notes: read |") and steps[-1].startswith("| admissions: kept |")
    assert all("− " in line for line in steps[1:-1])


def test_what_is_there_is_left_alone_until_it_would_change(tmp_path, mimic3, capsys):
    config = own(tmp_path / "t.csv")
    config.mimic3 = str(mimic3)
    prepare(config, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.array_record*")}
    flow = (tmp_path / "out" / "flow.json").read_bytes()
    capsys.readouterr()
    prepare(config, tmp_path / "out")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 8 and all(line.endswith(": unchanged") for line in printed[:-1])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "out" / "flow.json").read_bytes() == flow
    config.split.seed = 1
    prepare(config, tmp_path / "out")
    assert "unchanged" not in capsys.readouterr().out


def test_paper_mode_stands_beside_the_correct_one(tmp_path, mimic3):
    config = default()
    config.mimic3 = str(mimic3)
    for config.mode in ("correct", "paper"):
        prepare(config, tmp_path)
    flow = json.loads((tmp_path / "flow.json").read_text())
    paper = builders.load(tmp_path, "clinical_corpus/mimic3_paper")
    # Published: every note, flagged ones and repeats too, nine of ten to train, by note.
    assert sum(paper.splits.values()) == flow["clinical_corpus/mimic3_paper"]["notes: read"]
    assert set(paper.splits) == {"train", "test"} and 0.07 < paper.splits["test"] / sum(paper.splits.values()) < 0.13
    assert "\n" not in paper.split("train")[0]["text"] and "[**" not in paper.split("train")[0]["text"]
    patients = [{row["patient"] for row in rows(tmp_path, paper.task.name)[split]} for split in paper.splits]
    assert patients[0] & patients[1]
    assert flow["mimic3_admission"].keys() - flow["mimic3_admission_paper"].keys() <= {"notes: flagged as an error"}
    for name in ("mor", "los"):
        sizes = [sum(builders.load(tmp_path, f"mimic3_admission/{name}{s}").splits.values()) for s in ("", "_paper")]
        assert sizes[0] > 0 and sizes[1] > 0


def test_plain_tfds_opens_and_makes_the_same(tmp_path, prepared, mimic3):
    """In a process of its own: the registration is what an import does."""
    program = """
import sys
import tensorflow_datasets as tfds
import jaxlora.data.datasets

prepared, out, tables = sys.argv[1:]
source = tfds.data_source("mimic3_admission/los", split="test", data_dir=prepared)
builder = tfds.builder("mimic3_admission/los", data_dir=out)
tables = tfds.download.DownloadConfig(manual_dir=tables)
builder.download_and_prepare(download_config=tables)
made = builder.as_data_source(split="test")
assert list(builder.info.metadata["labels"]) == ["<=3 days", "3-7 days", "7-14 days", ">14 days"]
assert len(made) == len(source) > 100
assert [r["text"] for r in made] == [r["text"] for r in source] and [r["label"] for r in made] == [
    r["label"] for r in source
]
corpus = tfds.builder("clinical_corpus/mimic3", data_dir=out)
corpus.download_and_prepare(download_config=tables)
assert len(corpus.as_data_source(split="train")) == len(
    tfds.data_source("clinical_corpus/mimic3", split="train", data_dir=prepared)
)
assert "tensorflow" not in sys.modules
"""
    (tmp_path / "out").mkdir()
    script = [sys.executable, "-c", program, str(prepared), str(tmp_path / "out"), str(mimic3)]
    subprocess.run(script, check=True)


def test_no_mortality_note_tells_the_death(prepared_rows):
    assert not [row for data in prepared_rows(MOR).values() for row in data if "expired" in row["text"]]


def test_no_raw_identifier_is_stored(prepared_rows, mimic3):
    with (mimic3 / "ADMISSIONS.csv").open() as file:
        raw = {row[key] for row in csv.DictReader(file) for key in ("SUBJECT_ID", "HADM_ID")}
    stored = {row[key] for data in prepared_rows(MOR).values() for row in data for key in ("id", "patient")}
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
    labels = [row["label"] for data in rows(tmp_path / "out", MOR).values() for row in data]
    assert len(labels) == 129 and sum(labels) == 40
    assert sum(builders.load(tmp_path / "out", LOS).splits.values()) == 89
    assert "006" in builders.load(tmp_path / "out", PROC).task.labels


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


def test_two_at_once_are_not(tmp_path):
    """The lock is let go of with the process that held it."""
    config = own(tmp_path / "t.csv")
    prepare(config, tmp_path / "out")
    holder = "import sys, time; from jaxlora import files; from pathlib import Path\n"
    holder += "with files.locked(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "out" / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another `jaxlora prepare` is writing there"):
        prepare(config, tmp_path / "out")
    process.kill()
    process.wait()
    prepare(config, tmp_path / "out")


@pytest.mark.parametrize("form", ["folder", "a link to it", "a table for it"])
def test_what_changed_is_made_again(tmp_path, mimic3, capsys, form):
    tables, config = shutil.copytree(mimic3, tmp_path / "tables"), default()
    if form == "a link to it":
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "1.4").symlink_to(tables)
        config.mimic3 = str(tmp_path / "root")
    else:
        config.mimic3 = str(tables / "NOTEEVENTS.csv" if form == "a table for it" else tables)
    out = tables / "prepared"  # among the tables, whose change it is not
    prepare(config, out)
    died = sum(row["label"] for row in rows(out, MOR)["train"])
    capsys.readouterr()
    prepare(config, out)
    assert capsys.readouterr().out.count(": unchanged") == 6
    config.corpus.deid = "drop"
    prepare(config, out)
    assert capsys.readouterr().out.count(": unchanged") == 5  # all but the corpus
    path = tables / "ADMISSIONS.csv"
    path.write_text(re.sub(r",([01]),1\n", lambda found: f",{1 - int(found[1])},1\n", path.read_text()))
    prepare(config, out)
    printed = capsys.readouterr().out
    assert "unchanged" not in printed and "mimic3_admission/pmv: not made; it needs the table PROC" in printed
    assert sum(row["label"] for row in rows(out, MOR)["train"]) != died


def test_a_lost_flow_comes_back(tmp_path, mimic3):
    config = default()
    config.mimic3 = str(mimic3)
    prepare(config, tmp_path)
    whole = (tmp_path / "flow.json").read_text()
    told = json.loads(whole)
    del told["mimic3_admission/los"], told["clinical_corpus/mimic3"]
    (tmp_path / "flow.json").write_text(json.dumps(told))
    prepare(config, tmp_path)
    assert json.loads((tmp_path / "flow.json").read_text()) == json.loads(whole)
    (tmp_path / "flow.json").write_text('{"a": 5}')
    with pytest.raises(UserError, match="flow.json: not counts by dataset; delete it, and prepare again"):
        prepare(config, tmp_path)
