"""Paper mode is the published recipe, row for row; both modes are what the answer key of a generated cohort says."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jaxlora.config import default
from jaxlora.data import synthetic, tasks
from jaxlora.data.examples import keyed, split_of
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.mimic4 import Mimic4
from jaxlora.data.notes import admission_notes, admission_part
from tests.data import published_recipe

SHARES = ConfigDict({"validation": 0.1, "test": 0.2, "seed": 0})
KEY = bytes(32)
FATES = {
    "no report": "admissions: an addendum without its report",
    "no complaint, illness or history": "admissions: neither complaint nor illness nor history",
    "kept": "admissions: kept",
}


@pytest.fixture(scope="module")
def source(request, tmp_path_factory):
    """The folder of a generated cohort: of a release, of the demonstration, or the hybrid."""
    folder = tmp_path_factory.mktemp("cohort") / request.param
    if request.param == "demo":
        synthetic.write_mimic3(folder, patients=300, seed=3)
    elif request.param == "hybrid":
        synthetic.synthesize("hybrid", folder, 100, seed=7, source=request.getfixturevalue("shared_data"))
    else:
        synthetic.synthesize(request.param, folder, patients=250, seed=7, workers=1)
    return folder


@dataclass
class Made:
    """What one mode makes of a folder: labels (codes by name), texts and splits by dataset and raw admission."""

    folder: Path
    mode: str
    flow: Counter = field(default_factory=Counter)
    labels: dict = field(default_factory=dict)
    texts: dict = field(default_factory=dict)
    splits: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)

    def __post_init__(self):
        release = Mimic4(self.folder) if (self.folder / "hosp").is_dir() else Mimic3(self.folder)
        config = default()
        config.mode, config.split = self.mode, SHARES
        cohort = tasks.cohort(release, config, KEY)
        notes = admission_notes(release, cohort.admissions, self.mode, self.flow)
        raw = {keyed(KEY, f"admission:{admission}"): admission for admission in cohort.admissions}
        for name in tasks.available(release, config):
            task, examples = tasks.make(cohort, name, notes, Counter())
            self.tasks[name] = task
            self.labels[name] = {raw[e.id]: e.label for e in examples}
            self.texts[name] = {raw[e.id]: e.text for e in examples}
            self.splits[name] = {raw[e.id]: e.split for e in examples}
            if task.kind == "multilabel":
                self.labels[name] = {a: [task.labels[i] for i in label] for a, label in self.labels[name].items()}

    def rows(self, name):
        return [(admission, text, self.labels[name][admission]) for admission, text in self.texts[name].items()]


@pytest.mark.parametrize("source", ["mimic3", "demo", "hybrid"], indirect=True, scope="module")
def test_paper_mode_is_the_published_recipe(source):
    made = Made(source, "paper")

    def published(rows):
        return [(admission, text, int(label)) for admission, text, label in rows]

    assert made.rows("mor") == published(published_recipe.mortality(source, filtered=True))
    assert made.rows("mor_unfiltered") == published(published_recipe.mortality(source, filtered=False))
    assert made.rows("los") == published(published_recipe.length_of_stay(source))
    for name, oracle in (("diag", published_recipe.diagnoses), ("proc", published_recipe.procedures)):
        rows, labels = oracle(source)
        assert made.rows(name) == [(admission, text, label.split(",")) for admission, text, label in rows]
        assert made.tasks[name].labels == tuple(labels)
    assert len(made.rows("mor")) > 100


def answers(folder):
    with (folder / "answers.jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    return {line["admission"]: line for line in lines}, json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("mode", ["correct", "paper"])
@pytest.mark.parametrize("source", ["mimic3", "mimic4", "hybrid"], indirect=True, scope="module")
def test_the_answer_key(source, mode):
    made, (key, summary) = Made(source, mode), answers(source)
    assert set(made.labels) == set(made.tasks) <= set(summary["counts"][mode])
    fates = Counter(answer[mode]["fate"] for answer in key.values())
    assert {FATES[fate]: count for fate, count in fates.items() if fate in FATES}.items() <= made.flow.items()
    assert made.flow == {what: n for what, n in summary["notes" if mode == "correct" else "notes_paper"].items() if n}
    kept = {admission for admission, answer in key.items() if answer[mode]["fate"] == "kept"}
    assert set(made.labels["mor_unfiltered"]) == kept
    for name, labels in made.labels.items():
        expected = {admission: answer[mode][name] for admission, answer in key.items()}
        if made.tasks[name].kind == "multilabel":
            known = set(made.tasks[name].labels)  # in correct mode, those of training patients
            expected = {a: [code for code in codes if code in known] for a, codes in expected.items() if codes}
        assert labels == {admission: label for admission, label in expected.items() if label is not None}
        assert made.splits[name] == {admission: split_of(key[admission]["patient"], **SHARES) for admission in labels}


@pytest.mark.parametrize("mode", ["correct", "paper"])
@pytest.mark.parametrize("source", ["mimic3", "mimic4", "hybrid"], indirect=True, scope="module")
def test_the_counts_of_the_answer_key(source, mode):
    made, (_, summary) = Made(source, mode), answers(source)
    for name, expected in summary["counts"][mode].items():
        if name == "kept":
            assert made.flow["admissions: kept"] == expected
        elif name in made.labels:
            found = made.labels[name]
            count = len(found) if isinstance(expected, int) else dict(Counter(map(str, found.values())))
            assert count == expected, name
    for name, labels in summary["labels"].items():
        if mode == "paper":
            assert made.tasks[name.removesuffix("_paper")].labels == tuple(labels)


_PIECES = (
    "chief complaint:|Chief Complaint:|HISTORY OF PRESENT ILLNESS:|Past Medical History:|medical history:|Allergies:|"
    "Medications on Admission:|PHYSICAL EXAM:|Physical Exam:|Family History:|Social History:|Discharge Diagnosis:|"
    "\n|\n|\n\n|\n\n|\n\n\n|\\n|\\n\\n|\\|:|::| | |  |.|(|)|1|٣|\t|Past|cough|\x0b|patient|Pt|pt|had|has|expired|died|"
    "passed away|deceased|he expired|She expired|pronounced expired|time of death|Medication on Admission:|patients"
).split("|")


def test_any_summary_is_cut_and_filtered_as_published():
    rng = random.Random(5)
    cut = told = 0
    for _ in range(4000):
        summary = "".join(rng.choice((" ", "")) + rng.choice(_PIECES) for _ in range(rng.randint(1, 60))).strip()
        part = published_recipe.admission_text(summary)
        assert admission_part(summary, "paper") == part
        if part is not None:
            text = published_recipe.without_deaths_in_two_sections(part)
            expected = None if published_recipe.tells_death(text) else text
            assert tasks.without_death(part) == expected
            cut, told = cut + 1, told + (expected is None)
    assert cut > 500 and 100 < told < cut - 100


def test_stays_are_rounded_as_published():
    for minutes in (*range(-1500, 1500), *range(4300, 4500), *range(10000, 10300), *range(20100, 20400)):
        tenths = round(Fraction(minutes, 144))
        assert tasks.stay(minutes / 1440) == sum(tenths > limit for limit in (30, 70, 140)), minutes
