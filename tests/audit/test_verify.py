"""Checks of generated tables against their answer key, and of the published figures where they apply."""

import csv
import gzip
import json
import re
import shutil
from dataclasses import replace

import pytest

from jaxlora.audit import published
from jaxlora.audit.verify import verify_data
from jaxlora.config import default
from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.examples import Example, Task
from jaxlora.data.prepare import prepare
from jaxlora.data.synthetic import synthesize
from jaxlora.errors import UserError

RELEASES = ("mimic3", "mimic4")


def config_of(folder, release="mimic3", mode="correct"):
    config = default()
    config[release], config.mode = str(folder), mode
    return config


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folders = {release: tmp_path_factory.mktemp("tables") / release for release in RELEASES}
    for release, folder in folders.items():
        synthesize(release, folder, 100, 3)
    return folders


@pytest.fixture(scope="module")
def prepared(tables, tmp_path_factory):
    """A folder with everything of both releases in correct mode, and of MIMIC-III in paper mode."""
    out = tmp_path_factory.mktemp("prepared")
    for release, mode in (("mimic3", "correct"), ("mimic4", "correct"), ("mimic3", "paper")):
        prepare(config_of(tables[release], release, mode), out)
    return out


def checks(folder):
    return {f"{row['step']}: {row['name']}": row for row in json.loads((folder / "verify.json").read_text())["checks"]}


@pytest.mark.parametrize(("release", "mode"), [("mimic3", "correct"), ("mimic4", "correct"), ("mimic3", "paper")])
def test_generated_tables_pass(tables, prepared, release, mode, capsys):
    assert verify_data(config_of(tables[release], release, mode), prepared, full=True)
    printed, found = capsys.readouterr().out.splitlines(), checks(prepared)
    assert len(printed) == len(found) + 1 and "0 failed" in printed[-1] and "difference" not in printed[-1]
    assert {row["step"] for row in found.values()} == {
        "tables",
        "cohort",
        "rows",
        "labels",
        "classes",
        "corpus",
        "splits",
    }
    steps = [row["step"] for row in found.values()]
    assert steps.index("cohort") < steps.index("rows") < steps.index("splits")
    dataset = f"{release}_admission/mor" + ("_paper" if mode == "paper" else "")
    sizes = builders.load(prepared, dataset).splits
    assert found[f"rows: {dataset} train"]["expected"] == sizes["train"] > 0
    assert (prepared / "verify.md").read_text().count("| PASS |") > 50
    assert [(prepared / name).stat().st_mode & 0o077 for name in ("verify.md", "verify.json")] == [0, 0]


def test_large_tables_are_counted_when_asked_for(tables, prepared):
    verify_data(config_of(tables["mimic3"]), prepared)
    assert checks(prepared)["tables: CHARTEVENTS"]["status"] == "INFO"


def copied(tables, tmp_path):
    return shutil.copytree(tables["mimic3"], tmp_path / "tables")


def without_a_row(path):
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.reader(file))
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows[:-1])


def test_the_first_difference_is_named(tables, prepared, tmp_path, capsys):
    folder = copied(tables, tmp_path)
    without_a_row(folder / "DIAGNOSES_ICD.csv.gz")
    (folder / "PROCEDURES_ICD.csv.gz").unlink()
    whole = (folder / "ICUSTAYS.csv.gz").read_bytes()
    (folder / "ICUSTAYS.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert not verify_data(config_of(folder), prepared)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith("; first difference: tables: DIAGNOSES_ICD rows")
    assert "FAIL  tables: PROCEDURES_ICD (the table is not in" in printed
    assert "FAIL  tables: ICUSTAYS (" in printed
    row = checks(prepared)["tables: DIAGNOSES_ICD rows"]
    assert row["expected"] - row["found"] == 1


def test_a_difference_in_a_dataset(tables, prepared, tmp_path, capsys):
    out = shutil.copytree(prepared, tmp_path / "out")
    data = builders.load(out, "mimic3_admission/los")
    shutil.rmtree(out / "mimic3_admission" / "los")
    examples = [
        Example(row["id"], row["patient"], "x", 3 - row["label"], name)
        for name in data.splits
        for row in (builders.load(prepared, "mimic3_admission/los").split(name)[i] for i in range(data.splits[name]))
    ]
    examples[0] = replace(examples[0], patient=examples[-2].patient)
    examples[1] = replace(examples[1], id=examples[2].id)
    builders.build(out, Work(Task("los", "multiclass", data.task.labels), examples[:-1]))
    (out / "clinical_notes" / "los").rename(out / "mimic3_admission" / "los")
    assert not verify_data(config_of(tables["mimic3"]), out)
    told = capsys.readouterr().out
    failed = [name for name, row in checks(out).items() if row["status"] == "FAIL"]
    assert failed[0] == "rows: mimic3_admission/los test" and "classes: mimic3_admission/los >14 days" in failed
    assert "splits: patients in two splits: mimic3_admission/los" in failed
    assert "splits: identifiers that come twice: mimic3_admission/los" in failed
    assert "mor" not in " ".join(name for name in failed if " and " not in name)
    assert not any(example.patient in told or example.id in told for example in examples)


def changed(folder, mode, dataset, change):
    """Changes the first answer of a dataset, and the counts with it."""
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line[mode][dataset] not in (None, []))
    line[mode][dataset] = change(line[mode][dataset])
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = json.loads((folder / "answers.json").read_text())
    if isinstance(line[mode][dataset], int):
        labels = [str(line[mode][dataset]) for line in lines if line[mode][dataset] is not None]
        whole["counts"][mode][dataset] = {label: labels.count(label) for label in set(labels)}
    (folder / "answers.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("mode", "dataset", "change", "name"),
    [
        ("correct", "los", lambda label: 7, "los labels of no class"),
        ("correct", "los", lambda label: -5, "los labels of no class"),
        ("paper", "diag", lambda codes: [*codes, "XYZ"], "diag_paper labels with another count"),
    ],
)
def test_a_class_that_the_task_lacks_is_noticed(tables, prepared, tmp_path, mode, dataset, change, name):
    folder = copied(tables, tmp_path)
    changed(folder, mode, dataset, change)
    out = shutil.copytree(prepared, tmp_path / "out")
    assert not verify_data(config_of(folder, mode=mode), out)
    row = checks(out)[f"classes: mimic3_admission/{name}"]
    assert (row["status"], row["found"], row["expected"]) == ("FAIL", 1, 0)


def test_what_is_not_prepared_is_named(tables, tmp_path, capsys):
    assert not verify_data(config_of(tables["mimic3"]), tmp_path)
    printed = capsys.readouterr().out
    assert "FAIL  cohort: mimic3_admission (flow.json does not have it; run `jaxlora prepare`" in printed
    assert "FAIL  rows: mimic3_admission/mor (not prepared; run `jaxlora prepare`" in printed
    assert "FAIL  splits: prepared datasets (there are none" in printed
    with pytest.raises(UserError, match="--workdir: .*/none is no folder"):
        verify_data(default(), tmp_path / "none")


def test_own_datasets_are_checked_alone(tmp_path, capsys):
    rows = [Example(f"{i:016x}", f"{i // 2:016x}", "x", 0, ("train", "test")[i % 2]) for i in range(6)]
    builders.build(tmp_path, Work(Task("mine", "binary", ("n", "y")), rows))
    assert not verify_data(default(), tmp_path)
    assert "FAIL  splits: patients in two splits: mine: 3, not 0" in capsys.readouterr().out


ANSWERS = {
    "no object": ("answers.json", lambda text: "[]", "answers.json is not a JSON object"),
    "no counts": ("answers.json", lambda text: text.replace('"counts"', '"account"'), "answers.json: counts is not"),
    "other release": ("answers.json", lambda text: text.replace('"mimic3"', '"mimic4"'), "release is not mimic3"),
    "cut line": ("answers.jsonl", lambda text: text[:-20], r"answers.jsonl, line \d+: not an answer; run"),
    "wrong label": ("answers.jsonl", lambda text: text.replace('"los": ', '"los": "1', 1), "line 1: not an answer"),
    "no list of codes": (
        "answers.jsonl",
        lambda text: re.sub(r'"diag": \[[^]]*\]', '"diag": -5', text, count=1),
        "answers.jsonl, line 1: not an answer",
    ),
    "codes of a stay": (
        "answers.jsonl",
        lambda text: re.sub(r'"los": [^,}]*', '"los": ["3"]', text, count=1),
        "answers.jsonl, line 1: not an answer",
    ),
    "labels": (
        "answers.json",
        lambda text: json.dumps(json.loads(text) | {"labels": {"diag_paper": None}}),
        "answers.json: labels.diag_paper is not a list of texts; run",
    ),
    "a label": (
        "answers.json",
        lambda text: json.dumps(json.loads(text) | {"labels": {"proc_paper": ["1", 2]}}),
        "answers.json: labels.proc_paper is not a list of texts",
    ),
    "twice": ("answers.jsonl", lambda text: text + text.splitlines()[0], "line .*: an admission that an earlier line"),
    "a line less": ("answers.jsonl", lambda text: text.split("\n", 1)[1], "counts.correct.[a-z_]+ disagrees with answ"),
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_wrong_answer_key(tables, prepared, tmp_path, fault):
    folder = copied(tables, tmp_path)
    name, change, message = ANSWERS[fault]
    (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(UserError, match=message):
        verify_data(config_of(folder), prepared)


def test_an_answer_key_without_its_lines(tables, prepared, tmp_path):
    folder = copied(tables, tmp_path)
    (folder / "answers.jsonl").unlink()
    with pytest.raises(UserError, match="answers.jsonl: no such file beside answers.json"):
        verify_data(config_of(folder), prepared)


@pytest.fixture
def as_published(tables, prepared, tmp_path, monkeypatch):
    """The generated tables without their answers, the published figures being theirs."""
    folder = copied(tables, tmp_path)
    answers = json.loads((folder / "answers.json").read_text())
    for path in folder.glob("answers.*"):
        path.unlink()
    counts, sizes = answers["counts"]["paper"], {"pmv": (1, 1, 1)}
    for name in ("mor_unfiltered", "mor", "los", "diag", "proc"):
        splits = builders.load(prepared, f"mimic3_admission/{name}_paper").splits
        sizes[name] = tuple(splits.get(split, 0) for split in ("train", "validation", "test"))
    monkeypatch.setitem(published.TABLES, "MIMIC-III 1.4", answers["tables"])
    monkeypatch.setattr(published, "ROWS", sizes)
    monkeypatch.setattr(
        published, "LABELS", {name: len(answers["labels"][f"{name}_paper"]) for name in ("diag", "proc")}
    )
    monkeypatch.setattr(published, "BALANCE", {"los": tuple(counts["los"].values())})
    monkeypatch.setattr(published, "FLOW", {"": {"admissions: kept": counts["kept"]}})
    return folder


def test_published_figures_apply_in_paper_mode(as_published, prepared, capsys):
    assert verify_data(config_of(as_published, mode="paper"), prepared)
    printed = capsys.readouterr().out
    assert "PASS  cohort: mimic3_admission_paper: admissions: kept" in printed
    assert "PASS  labels: diag labels" in printed and "PASS  rows: mor, all splits" in printed
    # Without the published lists the splits are ours, so their sizes can neither be right nor wrong.
    assert checks(prepared)["rows: mor train"]["status"] == "INFO" and "set core_splits to their folder" in printed


def test_published_figures_are_for_information_in_correct_mode(as_published, prepared):
    assert verify_data(config_of(as_published), prepared)
    found = checks(prepared)
    of_recipe = [row for row in found.values() if row["step"] in ("cohort", "rows", "labels", "classes")]
    assert len(of_recipe) > 20 and {row["status"] for row in of_recipe} == {"INFO"}
    assert found["rows: diag train"]["remark"].startswith("published in paper mode")


def test_a_wrong_count_in_paper_mode_fails(as_published, prepared, monkeypatch, capsys):
    monkeypatch.setattr(published, "LABELS", {"diag": 1_266})
    assert not verify_data(config_of(as_published, mode="paper"), prepared)
    assert capsys.readouterr().out.splitlines()[-1].endswith("first difference: labels: diag labels")


def test_the_version_of_mimic4_is_recognised(tables, prepared, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(tables["mimic4"], tmp_path / "tables")
    told = json.loads((folder / "answers.json").read_text())["tables"]
    sizes = {name.rpartition("/")[2]: count for name, count in told.items()}
    for path in folder.glob("answers.*"):
        path.unlink()
    for version, more in (("MIMIC-IV 2.2", 0), ("MIMIC-IV 3.1", 9)):
        monkeypatch.setitem(published.TABLES, version, {k: sizes[k] + more for k in published.TABLES[version]})
    notes = {name: sizes[name] + (name == "discharge") for name in published.TABLES["MIMIC-IV-Note 2.2"]}
    monkeypatch.setitem(published.TABLES, "MIMIC-IV-Note 2.2", notes)
    assert verify_data(config_of(folder, "mimic4"), prepared, full=True)
    assert "is nearest to MIMIC-IV 2.2 (by the rows" in capsys.readouterr().out
    monkeypatch.setitem(notes, "radiology", sizes["radiology"] + 1)  # one row is tolerated of discharge only
    assert not verify_data(config_of(folder, "mimic4"), prepared)
    assert capsys.readouterr().out.endswith("first difference: tables: radiology rows\n")


def test_published_lists_decide_the_expected_rows(tables, shared_data, tmp_path):
    config = config_of(tables["mimic3"])
    lists = tmp_path / "lists"
    lists.mkdir()
    patients = [json.loads(line)["patient"] for line in (tables["mimic3"] / "answers.jsonl").read_text().splitlines()]
    patients = list(dict.fromkeys(patients))
    for i, name in enumerate(("mimic_train.csv", "mimic_val.csv", "mimic_test.csv")):
        (lists / name).write_text("SUBJECT_ID\n" + "\n".join(patients[i:100:3]) + "\n")
    config.core_splits = str(lists)
    prepare(config, tmp_path / "out")
    assert not verify_data(config, tmp_path / "out")
    failed = [name for name, row in checks(tmp_path / "out").items() if row["status"] == "FAIL"]
    assert failed == [f"splits: patients of the {split} list" for split in ("train", "validation", "test")]


def test_published_lists_are_the_published_ones(shared_data, tmp_path, capsys):
    config = config_of(shared_data / "mimiciii-demo-1.4")
    config.core_splits = str(shared_data / "core-splits")
    assert not verify_data(config, tmp_path)
    printed = capsys.readouterr().out
    assert (
        "PASS  splits: patients of the train list: 26,124" in printed and printed.count("PASS") == 3 + 2
    )  # and the two dictionaries of codes
    assert printed.splitlines()[-1].endswith("first difference: tables: NOTEEVENTS rows")


@pytest.mark.parametrize("mode", ["correct", "paper"])
def test_the_public_demo_with_generated_notes_passes(shared_data, tmp_path, mode):
    synthesize("hybrid", tmp_path / "tables", 1, 1, source=shared_data)
    config = config_of(tmp_path / "tables", mode=mode)
    config.core_splits = str(shared_data / "core-splits")
    prepare(config, tmp_path / "out")
    assert verify_data(config, tmp_path / "out")


def test_the_published_figures_agree_with_each_other():
    rows = {name: sum(of) for name, of in published.ROWS.items()}
    assert rows["mor_unfiltered"] == sum(published.BALANCE["mor_unfiltered"]) == published.FLOW[""]["admissions: kept"]
    for name, dropped in published.FLOW.items():
        if name:
            assert rows[name] + sum(dropped.values()) == rows["mor_unfiltered"]
    assert rows["los"] == sum(published.BALANCE["los"]) == published.BALANCE["mor_unfiltered"][0]
