"""The search before the runs of a row: with `config.search` every row that trains anything is tried equally often.

The trials of a cell (a row, a task) are scored by their own validation notes, with the first seed; every seed of the
cell is then run with the best of them. A searched cell has a folder of its own, `.../ROW/METHOD-BUDGET`, in which
`search` holds the trials, so that it is never taken for one with the settings as they stand.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxlora.errors import UserError, one_of
from jaxlora.reproduce.runs import Job, part_of
from jaxlora.search.record import best_of, read_trials, title
from jaxlora.search.space import with_settings

METHODS = ("random", "bayes")  # a grid is of as many trials as there are settings, which differ from row to row


def check(config: ConfigDict, number: str) -> None:
    """Checks that a table can be searched for as `config.search` says.

    Raises:
      UserError: it cannot.
    """
    one_of("config.search.method", config.search.method, METHODS)
    if config.search.budget < 1:
        raise UserError(f"config.search.budget is {config.search.budget}; it must be 1 or more")
    if number == "2":
        raise UserError("config.search.method: the techniques of Table 2 have the paper's sizes; leave it empty")
    if config.search.space:
        raise UserError("config.search.space: each row has its own; set config.SCALE.PART.rates or config.sizes")


def searches_of(config: ConfigDict, scale: str, jobs: Sequence[Job]) -> list[Job]:
    """Returns the searches of the cells that jobs are of, none without a method.

    Args:
      config: of `configs/reproduce.py`.
    """
    if not config.search.method:
        return []
    return [_search_of(config, scale, job) for job in jobs if job.seed == config.seed and job.config.trainable]


def _search_of(config: ConfigDict, scale: str, job: Job) -> Job:
    run = job.config.copy_and_resolve_references()
    run.search = config.search.copy_and_resolve_references()
    run.search.space = _space(config, scale, job)
    return dataclasses.replace(job, config=run, folder=_folder(config, job) / "search")


def with_best(config: ConfigDict, job: Job) -> Job:
    """Returns a job with the best settings of the finished search of its cell; TF-IDF's, which has none, as it is."""
    if not job.config.trainable:
        return job
    folder = _folder(config, job)
    best = best_of(read_trials(str(folder / "search")))
    return dataclasses.replace(job, config=with_settings(job.config, best.settings), folder=folder / job.folder.name)


def told(config: ConfigDict, searches: Sequence[Job]) -> str:
    """Returns what was searched, in words for under the table."""
    if not searches:
        return "No row was searched: learning rates and sizes are the config's."
    rows: dict[str, dict[str, None]] = {}
    for job in searches:
        fields = ", ".join(title(field) for field, _ in job.config.search.space)
        rows.setdefault(fields, {})[job.line.name] = None
    spaces = "; ".join(f"{fields}: {', '.join(names)}" for fields, names in rows.items())
    how = {"random": "at random", "bayes": "by Bayesian search"}[config.search.method]
    return (
        f"Each task of every row that trains anything was searched with {config.search.budget} trials {how}, by the "
        f"AUROC of seed {config.seed} on the validation notes, which also chose TF-IDF's C and no setting of step 1 "
        f"({spaces})."
    )


def _folder(config: ConfigDict, job: Job) -> Path:
    return job.folder.parent / f"{config.search.method}-{config.search.budget}"


def _space(config: ConfigDict, scale: str, job: Job) -> tuple[tuple[str, tuple], ...]:
    """Returns what a search may set: the learning rate, and the sizes of the LoRAs that are trained; of one that comes
    from step 1, its dropout alone."""
    space = [("learning_rate", tuple(part_of(job.line, config[scale]).rates))]
    for name in job.config.trainable:
        if name in job.config.adapters:
            given = job.config.adapters[name].workdir
            own = [(field, tuple(values)) for field, values in config.sizes if field == "dropout" or not given]
            space += [(f"adapters.{name}.{field}", values) for field, values in own]
    return tuple(space)
