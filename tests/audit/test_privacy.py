"""A secret in every note and identifier of a generated MIMIC leaves by none of the ways out of the data."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlora.data.synthetic import synthesize

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'mimic.py'}"
# Runs one command after another.
PROGRAM = """
import json, sys
from jaxlora import cli
for arguments in json.loads(sys.argv[1]):
    print("STATUS", cli.main(["jaxlora", *arguments]))
"""
SECRET = "Zq7xWv9KpR"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Generated tables with a secret word at the end of every note's first line, so that it is in the notes used."""
    folder = tmp_path_factory.mktemp("secret") / "tables"
    synthesize("mimic3", folder, patients=120, seed=5, compressed=False, workers=1)
    path = folder / "NOTEEVENTS.csv"
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    text = header.index("TEXT")
    for row in rows:
        row[text] = re.sub(r"(:\s)", rf"\1{SECRET} ", row[text]) or SECRET
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return folder


def jaxlora(*commands):
    """A real process, with everything logged, that runs the commands; returns what it said."""
    program = [sys.executable, "-c", PROGRAM, json.dumps([[*map(str, command)] for command in commands])]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    statuses = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("STATUS")]
    assert len(statuses) == len(commands) and set(statuses) <= {"0", "1", "2"}
    return done.stdout + done.stderr


def test_nothing_of_a_note_and_no_identifier_leaves(tables, tmp_path):
    data = tmp_path / "data"
    flags = (CONFIG, f"--config.mimic3={tables}", f"--workdir={data}")
    commands = [("prepare", *flags), ("verify-data", *flags), ("audit", *flags, "--smallest=1")]
    damages = (
        ("ADMISSIONS.csv", lambda text: text.replace("-", "/", 5)),
        ("NOTEEVENTS.csv", lambda text: text + f'1,2,{SECRET},"'),
        ("NOTEEVENTS.csv", lambda text: text[: len(text) // 2]),
        ("answers.jsonl", lambda text: text.replace("admission", SECRET, 1)),
    )
    for number, (name, damage) in enumerate(damages):
        broken = tmp_path / f"broken {number}"
        broken.mkdir()
        for path in tables.iterdir():
            (broken / path.name).symlink_to(path)
        (broken / name).unlink()
        (broken / name).write_text(damage((tables / name).read_text(encoding="utf-8")), encoding="utf-8")
        where = CONFIG, f"--config.mimic3={broken}", f"--workdir={tmp_path / 'other'}"
        commands += [("prepare", *where), ("verify-data", *where)]
    said = jaxlora(*commands)
    reports = "".join(
        path.read_text(encoding="utf-8") for path in data.iterdir() if path.suffix in (".md", ".json", ".txt")
    )
    assert "bag of words" in reports and "PASS" in said and "jaxlora: " in said

    # With --smallest=1 words of single patients are told, but never a number.
    words = json.loads((data / "audit.json").read_text())["leakage"]
    told = {word for one in words.values() for top in one["top"].values() for word, _ in top}
    assert not any(character.isdigit() for word in told for character in word)
    assert SECRET not in said + reports
    with (tables / "ADMISSIONS.csv").open(newline="", encoding="utf-8") as file:
        identifiers = {row[column] for row in csv.DictReader(file) for column in ("SUBJECT_ID", "HADM_ID")}
    found = set(re.findall(r"\b\d{5,6}\b", said + reports)) & identifiers
    assert not found, f"{len(found)} identifiers"
    for path in (path for path in data.rglob("*") if path.is_file()):
        assert path.stat().st_mode & 0o077 == 0, path.name
        assert SECRET not in path.name and not set(re.findall(r"\d{5,6}", path.name)) & identifiers - {"00000", "00001"}


def test_the_secret_is_where_it_may_be(tables, tmp_path):
    """Else the test above could not fail."""
    jaxlora(("prepare", CONFIG, f"--config.mimic3={tables}", f"--workdir={tmp_path}"))
    from jaxlora.data import builders

    split = builders.load(tmp_path, "mimic3_admission/mor_unfiltered").split("train")
    assert all(SECRET in split[i]["text"] for i in range(len(split)))
    assert len(split) > 20
