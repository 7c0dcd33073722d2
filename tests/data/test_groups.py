"""What group a patient is in: coarse categories of the tables' cells, from the tables to the tokenized notes."""

import csv
import json

import numpy as np
import pytest

from jaxlora.config import default
from jaxlora.data import builders, groups, shards
from jaxlora.data.builders import Work
from jaxlora.data.examples import Example, Task, keyed
from jaxlora.data.mimic3 import Mimic3
from jaxlora.data.mimic4 import Mimic4
from jaxlora.data.prepare import prepare
from jaxlora.data.synthetic import write_mimic3
from jaxlora.data.tokens import Tokenizer, tokenize
from jaxlora.errors import UserError


@pytest.mark.parametrize(
    ("attribute", "cell", "category"),
    [
        ("sex", "F", "female"),
        ("sex", " m", "male"),
        ("sex", "Zq7x", ""),
        ("ethnicity", "WHITE - RUSSIAN", "White"),
        ("ethnicity", "PORTUGUESE", "White"),
        ("ethnicity", "BLACK/CAPE VERDEAN", "Black"),
        ("ethnicity", "HISPANIC/LATINO - PUERTO RICAN", "Hispanic"),
        ("ethnicity", "ASIAN - ASIAN INDIAN", "Asian"),
        ("ethnicity", "AMERICAN INDIAN/ALASKA NATIVE FEDERALLY RECOGNIZED TRIBE", "other"),
        ("ethnicity", "UNABLE TO OBTAIN", ""),
        ("ethnicity", "PATIENT DECLINED TO ANSWER", ""),
        ("ethnicity", "UNKNOWN/NOT SPECIFIED", ""),
        ("ethnicity", None, ""),
        ("insurance", "Self Pay", "self-pay"),
        ("insurance", "Other", "other"),
        ("admission_type", "EW EMER.", "emergency"),
        ("admission_type", "DIRECT OBSERVATION", "observation"),
        ("admission_type", "SURGICAL SAME DAY ADMISSION", "elective"),
    ],
)
def test_cells_become_categories(attribute, cell, category):
    assert groups.category(attribute, cell) == category


@pytest.mark.parametrize(
    ("years", "band"),
    [(0, "0-44"), (44, "0-44"), (45, "45-64"), (64.9, "45-64"), (65, "65-79"), (80, "80+"), (91, "80+"), (300, "80+")],
)
def test_bands_of_age(years, band):
    assert groups.age_band(years) == band


def test_what_the_tables_of_mimic3_tell(tmp_path):
    header = (
        "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE,HOSPITAL_EXPIRE_FLAG,DIAGNOSIS,INSURANCE,ETHNICITY\n"
    )
    row = "{},{},{} 10:00:00,2199-01-01 10:00:00,ELECTIVE,0,,Medicare,{}\n"
    rows = row.format(7, 1, "2150-05-05", "UNKNOWN/NOT SPECIFIED"), row.format(7, 2, "2150-05-06", "ASIAN")
    (tmp_path / "ADMISSIONS.csv").write_text(header + "".join(rows) + row.format(8, 3, "2150-01-01", "WHITE"))
    (tmp_path / "PATIENTS.csv").write_text("SUBJECT_ID,GENDER,DOB\n7,F,2085-05-06 00:00:00\n")
    release = Mimic3(tmp_path)
    admission = {"insurance": "Medicare", "admission_type": "elective"}
    assert release.groups(release.admissions()) == {
        "1": admission | {"sex": "female", "age": "45-64"},
        "2": admission | {"sex": "female", "age": "65-79", "ethnicity": "Asian"},
        "3": admission | {"ethnicity": "White"},
    }
    (tmp_path / "PATIENTS.csv").unlink()
    assert release.groups(release.admissions())["1"] == admission


def test_what_the_tables_of_mimic4_tell(tmp_path):
    header = "subject_id,hadm_id,admittime,dischtime,admission_type,hospital_expire_flag,insurance,race\n"
    (tmp_path / "admissions.csv").write_text(header + "1,2,2180-05-06,2180-05-07,EW EMER.,1,,WHITE - BRAZILIAN\n")
    (tmp_path / "patients.csv").write_text("subject_id,gender,anchor_age,anchor_year\n1,M,91,2175\n")
    release = Mimic4(tmp_path)
    told = {"admission_type": "emergency", "ethnicity": "White", "sex": "male", "age": "80+"}
    assert release.groups(release.admissions()) == {"2": told}


def test_columns_that_a_table_lacks_are_passed_over(tmp_path):
    header = "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE,HOSPITAL_EXPIRE_FLAG,DIAGNOSIS\n"
    (tmp_path / "ADMISSIONS.csv").write_text(header + "7,1,2150-05-05,2150-05-06,URGENT,0,\n")
    (tmp_path / "PATIENTS.csv").write_text("SUBJECT_ID,EXPIRE_FLAG\n7,0\n")
    release = Mimic3(tmp_path)
    assert release.groups(release.admissions()) == {"1": {"admission_type": "urgent"}}


def test_the_public_demo(shared_data):
    release = Mimic3(shared_data / "mimiciii-demo-1.4")
    found = release.groups(release.admissions())
    assert len(found) == 129
    count = {name: sum(name in of for of in found.values()) for name in ("sex", "age", "ethnicity", "insurance")}
    assert count == {"sex": 129, "age": 129, "ethnicity": 117, "insurance": 129}
    assert sum(of.get("ethnicity") == "White" for of in found.values()) == 86


def test_from_the_tables_to_the_notes(tmp_path, small_base):
    """Every test note has the groups of its own admission, read from the tables once more."""
    write_mimic3(tmp_path / "tables", patients=120, seed=3)
    config = default()
    config.mimic3 = str(tmp_path / "tables")
    prepare(config, tmp_path / "data")
    split = builders.load(tmp_path / "data", "mimic3_admission/mor").split("test")
    notes = tokenize(split, Tokenizer(small_base), 32, "truncate", lambda _: None)
    key = bytes.fromhex((tmp_path / "data" / "id.key").read_text().strip())
    sexes, stays = (table(tmp_path / "tables" / f"{name}.csv") for name in ("PATIENTS", "ADMISSIONS"))
    sex_of = {row["SUBJECT_ID"]: {"F": "female", "M": "male"}[row["GENDER"]] for row in sexes}
    expected = {
        keyed(key, f"admission:{r['HADM_ID']}"): (sex_of[r["SUBJECT_ID"]], r["INSURANCE"].lower()) for r in stays
    }
    assert list(notes.groups) == ["admission_type", "age", "ethnicity", "insurance", "sex"]
    assert all(len(set(codes.tolist()) - {-1}) > 1 for _, codes in notes.groups.values())
    assert notes.groups["ethnicity"][1].min() == -1
    (sex_names, sex), (insurance_names, insurance) = notes.groups["sex"], notes.groups["insurance"]
    for id, one, two in zip(notes.ids, sex, insurance, strict=True):
        assert (sex_names[one], insurance_names[two].lower()) == expected[id]
    assert "groups" in builders.load(tmp_path / "data", "mimic3_admission/los").split("test")[0]
    assert builders.load(tmp_path / "data", "clinical_corpus/mimic3").split("test")[0]["groups"] == {}


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_dataset_from_before_there_were_groups(tmp_path, monkeypatch, small_base):
    rows = [Example(f"{i:016x}", f"{i:016x}", f"x{i}", i % 2, ("train", "test")[i // 5]) for i in range(10)]
    with monkeypatch.context() as before:
        before.setattr(shards, "OUTCOMES", ())
        builders.build(tmp_path, Work(Task("old", "binary", ("n", "y")), rows))
    assert "groups" not in json.loads(next(tmp_path.rglob("features.json")).read_text())["featuresDict"]["features"]
    split = builders.load(tmp_path, "old").split("test")
    assert split[0]["groups"] == {} and split[0]["label"] == 1
    assert tokenize(split, Tokenizer(small_base), 8, "truncate", lambda _: None).groups == {}


def test_encoded():
    found = groups.encoded([{"sex": "male"}, {}, {"sex": "female", "age": "80+"}])
    assert [(name, names) for name, (names, _) in found.items()] == [("age", ("80+",)), ("sex", ("female", "male"))]
    np.testing.assert_array_equal(found["sex"][1], [1, -1, 0])
    np.testing.assert_array_equal(found["age"][1], [-1, -1, 0])
    assert groups.encoded([]) == groups.encoded([{}, {}]) == {}


def test_a_birth_that_is_no_date(tmp_path):
    header = "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE,HOSPITAL_EXPIRE_FLAG,DIAGNOSIS\n"
    (tmp_path / "ADMISSIONS.csv").write_text(header + "7,1,2150-05-05,2150-05-06,URGENT,0,\n")
    (tmp_path / "PATIENTS.csv").write_text("SUBJECT_ID,GENDER,DOB\n7,F,Zq7x\n")
    release = Mimic3(tmp_path)
    with pytest.raises(UserError, match="PATIENTS.csv, column 'DOB', row 1: not a time like") as caught:
        release.groups(release.admissions())
    assert "Zq7x" not in str(caught.value)
