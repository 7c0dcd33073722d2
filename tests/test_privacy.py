"""No word of a note and no raw identifier leaves the prepared dataset, and nothing is asked of the network."""

import csv
import json
import subprocess
import sys
import zipfile

import pytest

from jaxlora.data import builders

# Runs one command after another in a process that cannot connect to anything; prints the status of each.
PROGRAM = """
import json, socket, sys

def forbidden(self, address):
    if self.family != socket.AF_UNIX:
        print("CONNECTED", address)
        raise OSError("no network")
    return real(self, address)

def unresolved(*arguments, **options):
    print("RESOLVED", *arguments)
    raise socket.gaierror("no network")

real, socket.socket.connect, socket.socket.connect_ex = socket.socket.connect, forbidden, forbidden
socket.getaddrinfo = unresolved
from jaxlora import cli
for arguments in json.loads(sys.argv[1]):
    print("STATUS", cli.main(["jaxlora", *arguments]), *arguments[:1])
"""


@pytest.fixture(scope="module")
def session(trained, tmp_path_factory):
    """Every verb once, and what can go wrong, in a process without network: its folder and all it said."""
    folder, tables = tmp_path_factory.mktemp("session"), tmp_path_factory.mktemp("tables")
    clinical, downstream = folder / "clinical", folder / "downstream"
    here = [f"--config.data.dir={folder / 'data'}", f"--config.clinical={clinical}"]
    step_1, step_2 = trained.flags("clinical") + here, trained.flags("frozen_downstream") + here
    commands = [
        ["prepare", *step_1, f"--workdir={folder / 'data'}"],
        ["train", *step_1, f"--workdir={clinical}"],
        ["evaluate", f"--workdir={clinical}"],
        ["train", *step_2, f"--workdir={downstream}"],
        ["evaluate", f"--workdir={downstream}"],
        ["predict", f"--workdir={downstream}", f"--input={trained.notes}", f"--output={folder / 'scores.csv'}"],
        ["report", f"--workdir={folder}"],
        ["card", f"--workdir={downstream}"],
        ["export-adapter", f"--workdir={downstream}", f"--output={folder / 'adapter'}"],
        ["export-model", f"--workdir={downstream}", f"--output={folder / 'model'}"],
        ["import-adapter", f"--adapter={folder / 'adapter'}", f"--base={trained.base}", f"--workdir={folder / 'back'}"],
        ["generate", f"--workdir={clinical}", f"--input={trained.notes}", f"--output={tables}/text", "--new-tokens=4"],
        ["train", *step_2, f"--workdir={clinical}"],
        ["predict", f"--workdir={clinical}", f"--input={trained.notes}", f"--output={folder / 'refused.csv'}"],
    ]
    declared = [f"--workdir={folder / 'refused'}", "--config.datasets.outcome.labels=('good','fair','poor')"]
    for table in bad_tables(trained, tables):
        commands.append(["prepare", *step_1, f"--config.path={table}", *declared])
    for table in (tables / "text.csv", tables / "quote.csv"):
        commands.append(
            ["predict", f"--workdir={downstream}", f"--input={table}", f"--output={folder / 'refused.csv'}"]
        )
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    result = subprocess.run(command, env=trained.environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout + result.stderr


def bad_tables(trained, folder):
    """Writes the notes with a wrong cell in row 9, and with a quote that never closes."""
    with trained.notes.open(newline="") as file:
        rows = list(csv.reader(file))
    for name, value in {"text": "  ", "label": trained.sentinels[0], "id": rows[1][0]}.items():
        changed = [list(cells) for cells in rows]
        changed[9][rows[0].index(name)] = value
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(changed)
    (folder / "quote.csv").write_text(trained.notes.read_text() + f'"{trained.sentinels[0]}')
    return sorted(folder.iterdir())


def found_in(content, words):
    return [word for word in words if word.encode() in content or word.encode("utf-16-le") in content]


def test_the_session_went_as_meant(session):
    statuses = [line.split()[1:] for line in session[1].splitlines() if line.startswith("STATUS")]
    assert [status for status, _ in statuses] == ["0"] * 12 + ["2"] * 8


def test_the_sentinels_are_in_the_notes(trained, session):
    split = builders.load(session[0] / "data", "outcome").split("test")
    assert all(trained.sentinels[0] in split[i]["text"] for i in range(len(split)))


def test_nothing_of_a_note_is_in_a_file_of_a_run(trained, session):
    paths = [path for path in session[0].rglob("*") if path.is_file()]
    paths = [path for path in paths if "clinical_notes" not in path.parts]  # the prepared datasets
    names = {"log.jsonl", "config.json", "predictions-test.npz", "scores.csv", "report.md", "jaxlora.json"}
    assert names <= {path.name for path in paths}
    assert [path for path in paths if "tensorboard" in path.parts and path.stat().st_size > 0]
    leaks = []
    for path in paths:
        contents = [path.read_bytes(), str(path).encode()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        leaks += [(path.name, word) for content in contents for word in found_in(content, trained.sentinels)]
    assert leaks == []


def test_no_raw_identifier_is_in_the_prepared_dataset(trained, session):
    for name in ("notes", "outcome"):
        data = builders.load(session[0] / "data", name)
        rows = [split[i] for split in map(data.split, data.splits) for i in range(len(split))]
        assert len(rows) == 60
        assert not found_in(json.dumps([[row["id"], row["patient"]] for row in rows]).encode(), trained.sentinels)


def test_nothing_of_a_note_is_said(trained, session):
    assert "validation auroc" in session[1] and "row 9: no text" in session[1]
    assert found_in(session[1].encode(), trained.sentinels) == []


def test_nothing_is_asked_of_the_network(session):
    assert [line for line in session[1].splitlines() if line.startswith(("CONNECTED", "RESOLVED"))] == []


def test_no_traceback_and_no_warning_in_what_is_said(session):
    assert "Traceback" not in session[1] and "Warning" not in session[1]
