"""The whole audit of prepared folders: its report, its figures, its hashes, and what is not in them."""

import json
import re

import pytest

from jaxlora.audit.audit import audit
from jaxlora.config import default
from jaxlora.data import builders
from jaxlora.data.builders import Work
from jaxlora.data.deid import note_hash
from jaxlora.data.examples import Example, Task
from jaxlora.data.prepare import prepare
from jaxlora.data.synthetic import synthesize
from jaxlora.errors import UserError


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "mimic3"
    synthesize("mimic3", folder, 100, 5)
    return folder


def config_of(tables, mode, exclude=""):
    config = default()
    config.mimic3, config.mode, config.corpus.exclude = str(tables), mode, str(exclude)
    return config


@pytest.fixture(scope="module")
def paper(tables, tmp_path_factory):
    """MIMIC-III as the paper prepares it: the corpus split by note, so that it has most of the test patients' notes."""
    out = tmp_path_factory.mktemp("paper")
    prepare(config_of(tables, "paper"), out)
    return out, audit(config_of(tables, "paper"), out), json.loads((out / "audit.json").read_text())


def row(found, dataset, stratum="all"):
    rows = found["contamination"]["rows"]
    (one,) = [row for row in rows if (row["dataset"], row["stratum"]) == (dataset, stratum)]
    return one


def test_a_planted_leak_is_in_the_report(mortality):
    folder = mortality("patient expired")
    text = audit(default(), folder)
    assert "| mor | 300 | 200 | 2 |" in text and "| **LEAK?** |" in text
    assert "* **LEAK?** 'expired' is among the heaviest words of died" in text
    assert "Skipped: no clinical corpus is prepared." in text and not (folder / "exclude.txt").exists()
    assert "None, in any dataset or across datasets." in text
    assert json.loads((folder / "audit.json").read_text())["leakage"]["mor"]["reasons"]
    assert (folder / "audit.md").read_text().startswith(text)


def test_a_clean_dataset_is_not_accused(mortality):
    text = audit(default(), mortality())
    assert "LEAK?" not in text and "| no leak found |" in text


@pytest.mark.parametrize("emptied", [("train", "test"), ("test",)])
def test_one_class_only(mortality, tmp_path, emptied):
    data = builders.load(mortality(), "mor")
    rows = [(name, split[i]) for name in data.splits for split in [data.split(name)] for i in range(len(split))]
    examples = [Example(r["id"], r["patient"], r["text"], r["label"], name) for name, r in rows]
    kept = [example for example in examples if not (example.label and example.split in emptied)]
    builders.build(tmp_path, Work(data.task, kept))
    text = audit(default(), tmp_path)
    assert "| one class only |" in text and "One class only: the train or the test notes are all" in text
    assert "nan" not in text and "No outcome word" not in text and "no leak found" not in text
    assert ("| label | heaviest words |" in text) == ("train" not in emptied)


def test_counts_of_few_patients_are_not_in_the_report(mortality):
    folder = mortality("patient expired")
    text = audit(default(), folder, smallest=40)
    (line,) = re.findall(r"^\| patient expired \|.*", text, re.MULTILINE)
    assert re.fullmatch(r"\| patient expired \| died \| <40 / \d+ \| 0 / \d+ \| – \| – \|", line)
    assert "A count of notes of fewer than 40 test patients is <40; what would tell it is left out" in text
    told = [row for row in json.loads((folder / "audit.json").read_text())["leakage"]["mor"]["outcome"]]
    counts = [row[name] for row in told for name in ("with_label", "of_label", "without_label", "of_others")]
    assert "<40" in counts and not [count for count in counts if isinstance(count, int) and 0 < count < 40]


def test_a_corpus_split_by_note_holds_the_test_notes(paper):
    out, text, found = paper
    one = row(found, "mimic3_admission/mor_unfiltered_paper")
    assert one["notes"] == builders.load(out, "mimic3_admission/mor_unfiltered_paper").splits["test"]
    assert one["contaminated"] > 0.6 and one["held_by_one"] > 0.6 and one["quantiles"]["0.5"] == 1
    assert "| clinical_corpus/mimic3_paper | mimic3_admission/mor_unfiltered_paper | all |" in text
    pairs = {(pair["first"], pair["first_split"], pair["second"]) for pair in found["patients_in_two_splits"]}
    assert ("clinical_corpus/mimic3_paper", "train", "mimic3_admission/mor_unfiltered_paper") in pairs


def test_the_strata_are_the_patients_of_carevue(paper):
    _, _, found = paper
    every, only, others = (
        row(found, "mimic3_admission/mor_unfiltered_paper", s) for s in ("all", "CareVue only", "the others")
    )
    assert only["notes"] + others["notes"] == every["notes"] and min(only["notes"], others["notes"]) > 0
    assert not [
        row for row in found["contamination"]["rows"] if row["stratum"] not in ("all", "CareVue only", "the others")
    ]


def test_without_the_excluded_notes_no_note_holds_a_test_note(paper, tables, tmp_path):
    out, _, found = paper
    hashes = (out / "exclude.txt").read_text().split()
    assert len(hashes) == found["contamination"]["excluded"] > 5
    assert all(re.fullmatch("[0-9a-f]{16}", line) for line in hashes) and hashes == sorted(set(hashes))
    train = builders.load(out, "clinical_corpus/mimic3_paper").split("train")
    held = [train[i] for i in range(len(train)) if note_hash(train[i]["text"]) in hashes]
    config = config_of(tables, "paper", out / "exclude.txt")
    prepare(config, tmp_path)
    left = builders.load(tmp_path, "clinical_corpus/mimic3_paper").splits
    assert len(train) - left["train"] == len(held) >= len(hashes)
    audit(config, tmp_path)
    again = row(json.loads((tmp_path / "audit.json").read_text()), "mimic3_admission/mor_unfiltered_paper")
    assert again["held_by_one"] == 0 and again["contaminated"] < 0.2
    # What was left out stays on the list, or the next corpus would have it again.
    assert set(hashes) <= set((tmp_path / "exclude.txt").read_text().split())


def test_nothing_of_a_note_and_no_identifier_is_told(mortality, capfd):
    folder = mortality("Zq7xWv")
    data = builders.load(folder, "mor")
    rows = [split[i] for split in map(data.split, data.splits) for i in range(len(split))]
    corpus = [Example(r["id"], r["patient"], f"{r['text']} Qm3Zk", None, "train") for r in rows]
    builders.build(folder, Work(Task("notes", "lm"), corpus))
    text = audit(default(), folder, smallest=500)
    written = text + "".join(capfd.readouterr())
    written += "".join((folder / name).read_text() for name in ("audit.md", "audit.json", "exclude.txt"))
    assert len((folder / "exclude.txt").read_text().split()) >= 150
    assert not [r for r in rows if r["id"] in written or " ".join(r["text"].split()[:4]) in written]
    assert not re.search("Zq7xWv|zq|Qm3Zk|namesake", written)
    private = [path for path in (*folder.glob("audit*"), *folder.glob("figures/*"), folder / "exclude.txt")]
    assert len(private) >= 5 and all(path.stat().st_mode & 0o077 == 0 for path in private)


def test_figures_are_pictures(paper):
    names = {path.name for path in (paper[0] / "figures").iterdir()}
    assert {"audit-overlap.png", "audit-words-mimic3_admission-mor_paper.png"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (paper[0] / "figures").iterdir())
    assert all(f"](figures/{name})" in (paper[0] / "audit.md").read_text() for name in names)


def test_long_train_splits_are_read_in_part(mortality, monkeypatch):
    monkeypatch.setattr("jaxlora.audit.audit.MOST_TRAIN_NOTES", 120)
    text = audit(default(), mortality("patient expired"))
    assert "| mor | 120 | 200 | 2 |" in text and "'expired' is among the heaviest words of died" in text


def test_a_folder_without_key_or_tables_says_so(mortality):
    folder = mortality()
    builders.build(folder, Work(Task("notes", "lm"), [Example("1", "1", "a", None, "train")]))
    assert "are not told apart: config.mimic3 is not set" in audit(default(), folder)
    config = default()
    config.mimic3 = str(folder)
    assert "are not told apart: the folder has no id.key" in audit(config, folder)
    assert not (folder / "id.key").exists()


def test_nothing_prepared(tmp_path):
    with pytest.raises(UserError, match="--workdir: .* holds no prepared dataset"):
        audit(default(), tmp_path)
