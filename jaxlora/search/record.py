"""The trials of a search, as `WORKDIR/sweep.json` keeps them."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from jaxlora import files
from jaxlora.errors import UserError

PLANNED, COMPLETE, DIVERGED = "planned", "complete", "diverged"
LESS_IS_BETTER = ("perplexity",)  # whose negative the score is


@dataclasses.dataclass
class Trial:
    """One trial, which is a run in the folder of its name.

    Attributes:
      settings: the fields it sets, by their dotted names.
      status: `PLANNED`, `COMPLETE` or `DIVERGED`.
      score: of its checkpoint on validation, larger for better; None unless it is complete.
      why: it diverged.
    """

    name: str
    settings: dict[str, Any]
    status: str = PLANNED
    score: float | None = None
    why: str = ""


def read_trials(workdir: str) -> list[Trial]:
    """Returns the trials of a search that was begun, none where there is no such search.

    Raises:
      UserError: the file is damaged, or that of a sweep over a list.
    """
    path = epath.Path(workdir) / "sweep.json"
    if not path.exists():
        return []
    try:
        trials = [Trial(name, **fields) for name, fields in json.loads(path.read_text()).items()]
        for trial in trials:
            trial.settings = {field: _frozen(value) for field, value in trial.settings.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged, or of a sweep over config.sweep; use a new workdir") from None
    return trials


def write_trials(workdir: str, trials: Sequence[Trial]) -> None:
    """Writes `WORKDIR/sweep.json`."""
    fields = ("settings", "status", "score", "why")
    found = {trial.name: {field: getattr(trial, field) for field in fields} for trial in trials}
    files.write_json(epath.Path(workdir) / "sweep.json", found)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial of the highest score, the first of several; None where none has one."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: trial.score, default=None)


def measured(trial: Trial, measure: str) -> float | None:
    """Returns what was measured of a trial, None where it diverged."""
    if trial.score is None:
        return None
    return -trial.score if measure in LESS_IS_BETTER else trial.score


def title(field: str) -> str:
    """Returns a field's name as a table has it: `adapters.downstream.rank` is "downstream rank"."""
    return field.removeprefix("adapters.").replace(".", " ").replace("_", " ")


def text(value: Any) -> str:
    """Returns a setting as a table has it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return " + ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
