"""Whole generated releases: every table, every quirk, the answer key, and the same bytes however they are made."""

import csv
import gzip
import hashlib
import json
import re
import sys
import tracemalloc
from collections import Counter
from datetime import datetime, timedelta

import pytest

from jaxlora.data.synthetic import synthesize
from jaxlora.data.synthetic.layout import MIMIC3, MIMIC4, Table
from jaxlora.errors import UserError

csv.field_size_limit(sys.maxsize)
SUMMARY = "Discharge summary"


def table(folder, name):
    """Reads a table with the standard library, nothing converted."""
    path = folder / f"{name}.csv.gz"
    opened = gzip.open(path, "rt", newline="") if path.exists() else (folder / f"{name}.csv").open(newline="")
    with opened as file:
        return list(csv.DictReader(file))


def answers(folder):
    with (folder / "answers.jsonl").open() as file:
        return {line["admission"]: line for line in map(json.loads, file)}


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def mimic3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "mimic3"
    synthesize("mimic3", folder, patients=100, seed=5, compressed=False)
    return folder


@pytest.fixture(scope="module")
def mimic4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "mimic4"
    synthesize("mimic4", folder, patients=100, seed=5)
    return folder


@pytest.fixture(scope="module")
def notes(mimic3):
    return table(mimic3, "NOTEEVENTS")


@pytest.fixture(scope="module")
def summaries(notes):
    return [row for row in notes if row["CATEGORY"] == SUMMARY]


def test_the_same_bytes_whatever_the_number_of_processes(tmp_path):
    for name, seed, workers in (("one", 3, 1), ("two", 3, 2), ("other", 4, 2)):
        synthesize("mimic3", tmp_path / name, patients=260, seed=seed, workers=workers)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one")["NOTEEVENTS.csv.gz"] != digests(tmp_path / "other")["NOTEEVENTS.csv.gz"]


def test_the_columns_are_those_of_the_demo(mimic3, shared_data):
    for path in (shared_data / "mimiciii-demo-1.4").glob("*.csv"):
        if path.stem in MIMIC3:
            real = path.open().readline().strip().upper().split(",")
            assert (mimic3 / path.name).open().readline().strip() == ",".join(f'"{name}"' for name in real)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (
            "CHARTEVENTS",
            "ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,ITEMID,CHARTTIME,STORETIME,CGID,VALUE,VALUENUM,VALUEUOM,WARNING,"
            "ERROR,RESULTSTATUS,STOPPED",
        ),
        ("LABEVENTS", "ROW_ID,SUBJECT_ID,HADM_ID,ITEMID,CHARTTIME,VALUE,VALUENUM,VALUEUOM,FLAG"),
    ],
)
def test_the_columns_of_tables_that_the_demo_lacks(mimic3, name, columns):
    assert ",".join(table(mimic3, name)[0]) == columns


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("hosp/diagnoses_icd", "subject_id,hadm_id,seq_num,icd_code,icd_version"),
        ("hosp/patients", "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod"),
        ("icu/icustays", "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los"),
        ("note/discharge", "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"),
        ("note/radiology_detail", "note_id,subject_id,field_name,field_value,field_ordinal"),
    ],
)
def test_the_columns_of_mimic4(mimic4, name, columns):
    assert ",".join(table(mimic4, name)[0]) == columns


@pytest.mark.parametrize("name", ["mimic3", "mimic4"])
def test_the_key_counts_the_rows_of_every_table(request, name):
    folder = request.getfixturevalue(name)
    key = json.loads((folder / "answers.json").read_text())
    assert set(key["tables"]) == set(MIMIC3 if name == "mimic3" else MIMIC4)
    for other, rows in key["tables"].items():
        found = table(folder, other)
        assert len(found) == rows > 0, other
        assert all(None not in row and None not in row.values() for row in found), other


@pytest.mark.parametrize("name", ["mimic3", "mimic4"])
def test_the_key_adds_up(request, name):
    folder = request.getfixturevalue(name)
    key, lines = json.loads((folder / "answers.json").read_text()), answers(folder)
    stays = table(folder, "ADMISSIONS" if name == "mimic3" else "hosp/admissions")
    assert [row.get("HADM_ID") or row.get("hadm_id") for row in stays] == list(lines)
    for mode in ("correct", "paper"):
        for dataset, expected in key["counts"][mode].items():
            if dataset == "kept":
                found = sum(line[mode]["fate"] == "kept" for line in lines.values())
            elif isinstance(expected, int):
                found = sum(bool(line[mode][dataset]) for line in lines.values())
            else:
                found = Counter(str(line[mode][dataset]) for line in lines.values() if line[mode][dataset] is not None)
            assert found == expected, (mode, dataset)


def test_every_fate_and_every_difference_between_the_modes(mimic3):
    lines = answers(mimic3).values()
    fates = {line["correct"]["fate"] for line in lines}
    assert fates == {"kept", "newborn", "no summary", "no report", "no complaint, illness or history"}
    pairs = {(line["correct"]["fate"], line["paper"]["fate"]) for line in lines}
    assert {("no summary", "kept"), ("kept", "no complaint, illness or history")} <= pairs
    told = {(line["correct"]["mor"] is None, line["paper"]["mor"] is None) for line in lines}
    assert told == {(True, True), (True, False), (False, True), (False, False)}
    assert any(line["correct"]["los"] is None and line["paper"]["los"] == 0 for line in lines)
    assert {line["correct"]["pmv"] for line in lines} == {0, 1, None} != {line["paper"]["pmv"] for line in lines}


def test_times_are_missing_by_category(notes):
    timed = {row["CATEGORY"]: set() for row in notes}
    for row in notes:
        assert row["CHARTDATE"].endswith(" 00:00:00")
        timed[row["CATEGORY"]].add((bool(row["CHARTTIME"]), bool(row["STORETIME"])))
    assert len(timed) == 15 and "Physician " in timed
    for category, found in timed.items():
        never = category in (SUMMARY, "ECG", "Echo")
        assert found == {(not never, not never and category != "Radiology")}


def test_quirks_of_the_text(mimic3, summaries):
    raw = (mimic3 / "NOTEEVENTS.csv").read_bytes()
    assert b"\r\n" in raw and b'""fine""' in raw
    texts = [row["TEXT"] for row in summaries]
    assert any("\r\n" in text for text in texts) and sum(len(text) > 60_000 for text in texts) == 1
    assert "" in texts
    tags = {re.sub(r"[\d-]", "", tag) for text in texts for tag in re.findall(r"\[\*\*(.*?)\*\*\]", text)}
    assert len(tags) > 35 and " " in tags
    assert any("\nhistory of present illness:" in text for text in texts)
    assert any("\nHISTORY OF PRESENT ILLNESS:" in text for text in texts)
    assert any("\nHPI:" in text for text in texts) and any("\nChief Complaint: " in text for text in texts)
    for heading in ("Family History:\n\n\n\n", "Past Medical History:\n\nSocial History:"):
        assert any(heading in text for text in texts)
    last = {text.rstrip().split("\n\n")[-1].split(":")[0] for text in texts}
    assert {"Chief Complaint", "Medications on Admission", "Social History", "Discharge Disposition"} <= last


def test_death_is_told_in_every_section(mimic3, summaries):
    key, found = answers(mimic3), {}
    for heading in (
        "Chief Complaint",
        "History of Present Illness",
        "Past Medical History",
        "Medications on Admission",
        "Allergies",
        "Physical Exam",
        "Family History",
        "Social History",
    ):
        stays = [row["HADM_ID"] for row in summaries if not row["ISERROR"] and tells(row["TEXT"], heading)]
        found[heading] = {key[stay]["correct"]["mor"] is not None for stay in stays}
    kept = {heading for heading, notes in found.items() if True in notes}
    assert all(found.values()) and kept == {"Medications on Admission", "Physical Exam"}


def tells(text, heading):
    sections = (part for part in text.split("\n\n") if part.startswith(f"{heading}:\n"))
    return any(re.search("(?i)expired|died|deceased|passed away|time of death", part) for part in sections)


def test_quirks_of_the_rows(mimic3, notes, summaries):
    stays = {row["HADM_ID"]: row for row in table(mimic3, "ADMISSIONS")}
    assert {row["ISERROR"] for row in summaries} == {"", "1"} == {row["ISERROR"] for row in notes}
    kinds = {}
    for row in summaries:
        kinds.setdefault(row["HADM_ID"], []).append(row["DESCRIPTION"])
    assert ["Addendum"] in kinds.values() and ["Report", "Addendum"] in kinds.values()
    assert kinds[""] == ["Report"] and kinds.keys() - {"", *stays}
    newborns = {id for id, row in stays.items() if row["ADMISSION_TYPE"] == "NEWBORN"}
    assert newborns & kinds.keys()
    assert {row["ADMISSION_TYPE"] for row in stays.values()} == {"EMERGENCY", "URGENT", "ELECTIVE", "NEWBORN"}
    assert {row["HADM_ID"] == "" for row in notes if row["CATEGORY"] == "Radiology"} == {True, False}
    again = Counter(row["TEXT"] for row in summaries if row["TEXT"])
    twice = [text for text, count in again.items() if count > 1]
    places = [tuple({row["HADM_ID"] for row in summaries if row["TEXT"] == text}) for text in twice]
    assert {len(place) for place in places} == {1, 2} and max(again.values()) == 2


@pytest.mark.parametrize("name", ["mimic3", "mimic4"])
def test_texts_repeat_only_where_the_key_says_so(request, name):
    folder = request.getfixturevalue(name)
    names = ("NOTEEVENTS",) if name == "mimic3" else ("note/discharge", "note/radiology")
    rows = [row for each in names for row in table(folder, each) if row.get("ISERROR") != "1"]
    texts = Counter(text for row in rows if (text := row.get("TEXT") or row.get("text")))
    corpus = json.loads((folder / "answers.json").read_text())["corpus"]
    assert sum(count - 1 for count in texts.values()) == corpus["notes: the same text again"] > 0
    assert corpus["notes: read"] - corpus["notes: flagged as an error"] - corpus["notes: no text"] == sum(
        texts.values()
    )


def test_quirks_of_the_people(mimic3):
    stays, people = table(mimic3, "ADMISSIONS"), table(mimic3, "PATIENTS")
    assert {row["DOB"][:2] for row in people} > {"18", "20"}
    assert all("2100" <= row["ADMITTIME"][:4] < "2201" for row in stays)
    negative = [row for row in stays if row["DISCHTIME"] < row["ADMITTIME"]]
    assert {row["HOSPITAL_EXPIRE_FLAG"] for row in negative} == {"0", "1"}
    assert any("DONOR" in row["DIAGNOSIS"] for row in negative)
    assert any("," in row["DIAGNOSIS"] for row in stays) and any('"' in row["DIAGNOSIS"] for row in stays)
    assert max(Counter(row["SUBJECT_ID"] for row in stays).values()) > 1


def test_quirks_of_the_codes(mimic3):
    rows, key = table(mimic3, "DIAGNOSES_ICD"), answers(mimic3)
    codes = {row["ICD9_CODE"] for row in rows}
    assert {len(code) for code in codes if code.startswith("V")} == {3, 4, 5}
    assert "" in codes and any(code.startswith("E") for code in codes) and any(code.startswith("0") for code in codes)
    assert "" in {row["SEQ_NUM"] for row in rows if row["ICD9_CODE"]}
    cut = {name: [line[name] for line in key.values()] for name in ("correct", "paper")}
    zeros = ["0066", "0331", "3310", "0017", "017", "660"]
    assert zeros == [
        row["ICD9_CODE"]
        for row in table(mimic3, "PROCEDURES_ICD")
        if row["HADM_ID"] == next(id for id, line in key.items() if line["correct"]["proc"][:2] == ["006", "033"])
    ]
    assert ["006", "033", "331", "001", "017", "660"] in [line["proc"] for line in cut["correct"]]
    assert ["66", "331", "17", "660"] in [line["proc"] for line in cut["paper"]]
    assert ["V08", "V45", "E888", "E880"] in [line["diag"] for line in cut["correct"]]
    assert ["V08", "V451", "V458", "E888", "E880"] in [line["diag"] for line in cut["paper"]]
    assert [] in [line["diag"] for line in cut["correct"] if line["fate"] == "kept"]


def test_the_ventilation_label_is_that_of_the_spans(mimic3):
    """A second reckoning, by patients of MetaVision alone, whose spans stand in one table."""
    spans, key = {}, answers(mimic3)
    for row in table(mimic3, "PROCEDUREEVENTS_MV"):
        if row["ITEMID"] == "225792":
            times = [datetime.fromisoformat(row[name]) for name in ("STARTTIME", "ENDTIME")]
            assert int(row["VALUE"]) == (times[1] - times[0]).total_seconds() / 60
            spans.setdefault(row["HADM_ID"], {}).setdefault(row["ICUSTAY_ID"], []).extend(times)
    seen = Counter()
    for admission, stays in spans.items():
        times, label = min(stays.values()), key[admission]["correct"]["pmv"]
        span = max(times) - min(times) + timedelta(hours=6)
        if label is not None:
            assert span >= timedelta(days=2) and label == (span >= timedelta(days=7))
            seen[label] += 1
    assert seen[0] and seen[1]
    sources = {row["DBSOURCE"] for row in table(mimic3, "ICUSTAYS")}
    assert sources == {"carevue", "metavision"}
    assert {"720", "640"} <= {row["ITEMID"] for row in table(mimic3, "CHARTEVENTS")}


def test_quirks_of_mimic4(mimic4):
    notes = table(mimic4, "note/discharge") + table(mimic4, "note/radiology")
    assert all(row["note_id"] == f"{row['subject_id']}-{row['note_type']}-{row['note_seq']}" for row in notes)
    assert {row["note_type"] for row in notes} == {"DS", "AD", "RR"} and len({row["note_id"] for row in notes}) == len(
        notes
    )
    assert not any("[**" in row["text"] for row in notes) and all(row["subject_id"][0] == "1" for row in notes)
    assert any("\n \n" in row["text"] for row in notes) and any("___" in row["text"] for row in notes)
    assert "" in {row["hadm_id"] for row in notes if row["note_type"] == "RR"}
    versions = {}
    for row in table(mimic4, "hosp/diagnoses_icd"):
        versions.setdefault(row["hadm_id"], set()).add(row["icd_version"])
    assert set(map(frozenset, versions.values())) == {frozenset(each) for each in (["9"], ["10"], ["9", "10"])}
    left = {row["subject_id"]: row["dischtime"] for row in table(mimic4, "hosp/admissions")}
    died = [(row["dod"], left[row["subject_id"]]) for row in table(mimic4, "hosp/patients") if row["dod"]]
    assert all(dod >= discharged[:10] for dod, discharged in died) and any(dod > each[:10] for dod, each in died)
    assert all(datetime.fromisoformat(dod) - datetime.fromisoformat(each) < timedelta(days=366) for dod, each in died)


def test_full_notes_are_as_many_and_as_long_as_real_ones(tmp_path):
    synthesize("mimic3", tmp_path / "full", patients=80, seed=0, notes="full")
    rows = table(tmp_path / "full", "NOTEEVENTS")
    lengths = [len(row["TEXT"]) for row in rows]
    stays = len(table(tmp_path / "full", "ADMISSIONS"))
    assert 28 < len(rows) / stays < 42 and 1500 < sum(lengths) / len(lengths) < 2300
    summaries = sorted(len(row["TEXT"]) for row in rows if row["CATEGORY"] == SUMMARY)
    assert 8_000 < summaries[len(summaries) // 2] < 13_000


def test_a_table_is_written_in_bounded_memory(tmp_path):
    text = "a note " * 700
    tracemalloc.start()
    with Table(tmp_path / "NOTES.csv.gz", quoted=True, row_id=1) as notes:
        for _ in range(20_000):
            notes.add(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert notes.rows == 20_000 and peak < 10_000_000 < 20_000 * len(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tables": "mimic5"}, "--tables: no 'mimic5'; did you mean 'mimic4'"),
        ({"notes": "ful"}, "--notes: no 'ful'; did you mean 'full'"),
        ({"patients": 0}, "--patients"),
        ({"tables": "hybrid", "source": "nowhere"}, "--source: nowhere/mimiciii-demo-1.4 has no ADMISSIONS.csv"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        synthesize(**{"tables": "mimic3", "folder": tmp_path / "out", "patients": 5, "seed": 0} | arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="give a new folder"):
        synthesize("mimic3", tmp_path, patients=5, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
