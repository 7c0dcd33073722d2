"""The evaluated runs under a folder: what each was, what it predicted, and how it went."""

import dataclasses
import itertools
import json
from pathlib import Path

from jaxlora.errors import UserError
from jaxlora.eval.predictions import Predictions, load
from jaxlora.rows import ROWS, title_of


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated run: its dataset, its active adapters, the title of its row, its predictions, its log, its name as
    a member of a sweep, and the directory of its base."""

    dataset: str
    active: tuple[str, ...]
    row: str
    predictions: Predictions
    log: list[dict[str, float]]
    member: str = ""
    base: str = ""


def find_runs(folder: str | Path, split: str = "test") -> list[Run]:
    """Returns every evaluated run under `folder`, in the order of the rows of the paper's tables. Where there are
    several bases, each row names its own.

    Raises:
      UserError: there is none, or a file of one is missing or damaged.
    """
    runs = [_read(path) for path in sorted(Path(folder).rglob(f"predictions-{split}.npz"))]
    if not runs:
        raise UserError(f"--workdir: no evaluated run under {folder}; run `jaxlora evaluate` on one first")
    order = [row.title for row in ROWS.values()]
    runs = sorted(runs, key=lambda run: (run.dataset, order.index(run.row) if run.row in order else len(order)))
    bases = _short({run.base for run in runs if run.base})
    if len(bases) < 2:
        return runs
    return [dataclasses.replace(run, row=f"{run.row}, {bases[run.base]}") if run.base else run for run in runs]


def _short(paths: set[str]) -> dict[str, str]:
    """Returns what tells some paths apart: as few of their last parts as do."""
    for parts in itertools.count(1):
        names = {path: "/".join(Path(path).parts[-parts:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names


def _read(predictions: Path) -> Run:
    path, sweep = predictions.parent / "config.json", predictions.parent.parent / "sweep.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        dataset, active = config["data"]["name"], tuple(config["active"])
        row = title_of(active, tuple(config["trainable"]), tuple(config["adapters"]))
        path = predictions.parent / "log.jsonl"
        log = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        path, member = sweep, predictions.parent.name
        if not sweep.exists() or member not in json.loads(sweep.read_text(encoding="utf-8")):
            member = ""
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy the whole run, or remove its {predictions.name}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; copy it again, or remove {predictions}") from None
    base = config.get("base", "")
    return Run(dataset, active, f"{row}, {member}" if member else row, load(predictions), log, member, base)
