"""The notebook is clean, the commands it names are valid, and it runs from top to bottom."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jaxlora import cli
from jaxlora.arguments import parse

NOTEBOOK = Path(__file__).parents[2] / "colab/clinical_lora.ipynb"
# What makes the demo smaller than the notebook's own run.
OVERRIDES = [
    "--config.demo.patients=60",
    "--config.demo.tasks=('mor',)",
    "--config.demo.rows=('head_only', 'frozen_downstream')",
    "--config.demo.base.sentences=600",
    "--config.demo.base.epochs=1",
    "--config.demo.clinical.epochs=1",
    "--config.demo.downstream.epochs=1",
]
TIMEOUT = 1800  # seconds a cell


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def test_it_is_valid_and_stores_no_output(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert cell.outputs == [] and cell.execution_count is None


def test_its_commands_for_own_notes_are_valid(notebook):
    (block,) = re.findall(r"```bash\n(.*?)```", notebook.cells[-1].source, flags=re.DOTALL)
    commands = [line.split() for line in block.splitlines()]
    assert [command[1] for command in commands] == ["prepare", "train", "train", "evaluate"]
    for command in commands:
        assert parse(cli.VERBS[command[1]], command[1:]).workdir


@pytest.mark.slow
def test_it_runs_and_shows_the_report(notebook, tmp_path):
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    smaller = f"WORKDIR = {str(tmp_path / 'demo')!r}\nOVERRIDES = {OVERRIDES!r}"
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(smaller))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT, resources=resources).execute()

    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in shown if output.output_type == "stream")
    data = [output.data for output in shown if output.output_type == "display_data"]
    assert "jaxlib" in printed and "devices:" in printed
    assert any("AUROC" in part.get("text/markdown", "") for part in data)
    assert any("image/png" in part for part in data)
