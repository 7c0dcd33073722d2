"""A generated MIMIC-III and what `prepare` makes of it, once a session."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlora.config import default
from jaxlora.data import builders
from jaxlora.data.prepare import prepare
from jaxlora.data.synthetic import write_mimic3


@pytest.fixture(scope="session")
def mimic3(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mimic3")
    write_mimic3(folder, patients=600, seed=0)
    return folder


@pytest.fixture(scope="session")
def prepared(mimic3, tmp_path_factory) -> Path:
    config = default()
    config.mimic3 = str(mimic3)
    out = tmp_path_factory.mktemp("prepared")
    prepare(config, out)
    return out


@pytest.fixture(scope="session")
def prepared_rows(prepared) -> Callable[[str], dict[str, list[dict]]]:
    """The rows of a prepared dataset by split, read once a session."""

    @functools.cache
    def rows(name):
        data = builders.load(prepared, name)
        return {name: [split[i] for i in range(len(split))] for name in data.splits for split in [data.split(name)]}

    return rows
