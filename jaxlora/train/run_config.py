"""The `config.json` of a run: written, read back, and held against the config of a run that goes on."""

import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxlora import files
from jaxlora.config import default, drops_out, flat, wrong_field
from jaxlora.errors import UserError
from jaxlora.interop import huggingface

# Fields that older runs lack; their defaults are what was done before there were any.
_ADDED = (
    *("quantize", "accumulate", "attention.", "mesh.rules.", "keep.", "wandb", "sweep"),
    *("search.", "paper_accumulate"),
)
# What may differ in a run that goes on: where the arrays lie and what is kept of them, but not what is computed; and
# how many trials a search makes.
MAY_CHANGE = ("mesh.", "accumulate", "remat", "attention.", "loss_chunk", "keep.", "wandb", "search.budget")


def write(workdir: str, config: ConfigDict) -> None:
    """Writes the run's config to `WORKDIR/config.json`."""
    files.write_json(epath.Path(workdir) / "config.json", json.loads(config.to_json_best_effort()))


def read(workdir: str) -> ConfigDict:
    """Reads the run's config.

    Raises:
      UserError: the folder is not a run's, or its config is damaged.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"--workdir: {workdir} has no config.json; give the folder of a run that `train` made")
    try:
        raw = json.loads(path.read_text())
        for field, value in flat(default()).items():
            if field.startswith(_ADDED):
                _set_missing(raw, field.split("."), value)
        config = ConfigDict(raw)
        wrong = wrong_field(config)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; copy it again") from None
    if wrong:
        raise UserError(f"{path}: {wrong}; the file is damaged, or of another version")
    return config


def _set_missing(raw: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        raw = raw.setdefault(name, {})
    raw.setdefault(path[-1], value)


def check_same(workdir: str, config: ConfigDict) -> None:
    """Checks that a run that is to be resumed has the config it was started with, but for `MAY_CHANGE`.

    Raises:
      UserError: a field differs; it is named with both values.
    """
    before, now = flat(read(workdir)), flat(json.loads(config.to_json_best_effort()))
    differing = [field for field in sorted(before.keys() | now.keys()) if before.get(field) != now.get(field)]
    may = MAY_CHANGE
    if "accumulate" in differing and drops_out(config, huggingface.read_shape(config.base).drops_out):
        may = tuple(field for field in may if field != "accumulate")  # each part draws masks of its own
    for field in differing:
        if not field.startswith(may):
            raise UserError(
                f"--workdir: {workdir} was started with config.{field} = {before.get(field)!r}, "
                f"not {now.get(field)!r}; use a new workdir"
            )
