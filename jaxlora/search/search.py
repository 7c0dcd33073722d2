"""The verb `sweep` with `config.search`: looks for the settings with the best validation.

Every trial is a run as `train` makes it, in a folder of its own. Trials that can share a program are trained as one,
the others one after the other. The objective is the score of the run's own validation; the test split is not read.
"""

from collections.abc import Mapping, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxlora.checks import check_fields
from jaxlora.data.examples import ANNOTATED
from jaxlora.errors import UserError, one_of
from jaxlora.inputs import open_dataset
from jaxlora.pipeline import train_run
from jaxlora.programs import programs
from jaxlora.search import summary
from jaxlora.search.record import COMPLETE, DIVERGED, PLANNED, Trial, best_of, read_trials, write_trials
from jaxlora.search.space import Dimension, read_space, with_settings
from jaxlora.search.suggest import METHODS, suggest
from jaxlora.sweep import read_members, train_members
from jaxlora.train import run_config
from jaxlora.train.checkpoint import Checkpoints
from jaxlora.train.devices import share_cores
from jaxlora.train.mesh import start_distributed
from jaxlora.train.run import NotFinite


def search_run(config: ConfigDict, workdir: str, allow_base_mismatch: bool = False) -> None:
    """Trains the trials of `config.search`, each in `WORKDIR/trial-NUMBER`; goes on where it stopped.

    Writes `sweep.json` after every program, and at the end `sweep.md`, `best.json` and `figures/parallel.png`.

    Args:
      allow_base_mismatch: starts from adapters that were trained on another base.

    Raises:
      UserError: a field of the config that is missing or wrong, a dataset without validation notes, or no trial whose
        loss stayed a number.
    """
    start_distributed()
    space, measure, labels = _check(config, workdir)
    first, search = jax.process_index() == 0, config.search
    trials = read_trials(workdir)
    while True:
        planned = [trial for trial in trials if trial.status == PLANNED]
        if not planned:
            settings = suggest(search.method, space, trials, search.budget, search.together, search.seed)
            planned = [Trial(f"trial-{number:03d}", own) for number, own in enumerate(settings, len(trials))]
            trials += planned
        if not planned:
            break
        if first:
            run_config.write(workdir, config)
            write_trials(workdir, trials)
        configs = {trial.name: with_settings(config, trial.settings) for trial in planned}
        for program in programs(configs, search.together, dict.fromkeys(configs, labels)):
            whole = _train(program, trials, workdir, allow_base_mismatch)
            if first:
                write_trials(workdir, trials)
            if not whole:  # SIGTERM; the training has said so
                return
    if best_of(trials) is None:
        raise UserError(f"--workdir: every trial of {workdir} diverged; search lower learning rates in a new one")
    if first:
        print(summary.write(workdir, config.data.name, search.method, measure, space, trials))


def _check(config: ConfigDict, workdir: str) -> tuple[tuple[Dimension, ...], str, int]:
    """Checks what can be checked before the first trial; returns the space, what validation measures, and how
    many labels there are."""
    search = config.search
    one_of("config.search.method", search.method, METHODS)
    for field, least in (("budget", 1), ("together", 1)):
        if search[field] < least:
            raise UserError(f"config.search.{field} is {search[field]}; it must be {least} or more")
    if config.sweep:
        raise UserError(
            "config.sweep and config.search.method are both set; `sweep` trains a list or searches: empty one"
        )
    if config.wandb:
        raise UserError("config.wandb is set, but Weights & Biases takes one run a process; leave it empty in a sweep")
    space = read_space(config)
    check_fields(config)
    share_cores(config.base)
    prepared = open_dataset(config)
    if not prepared.splits.get("validation"):
        raise UserError(
            f"config.data.name: {config.data.name} has no validation notes to compare trials on; prepare it with "
            "config.split.validation above 0"
        )
    if (epath.Path(workdir) / "config.json").exists():
        run_config.check_same(workdir, config)
    kind = prepared.task.kind
    measure = "perplexity" if kind == "lm" else "F1" if kind in ANNOTATED else "AUROC"
    return space, measure, len(prepared.task.outputs)


def _train(configs: Mapping[str, ConfigDict], trials: Sequence[Trial], workdir: str, allow_base_mismatch: bool) -> bool:
    """Trains the trials of one program to their ends and notes their scores; returns whether SIGTERM let it."""
    if len(configs) == 1:
        diverged, stopped = _alone(*configs, configs, workdir, allow_base_mismatch)
    else:
        shared = next(iter(configs.values()))
        ready = read_members(shared, workdir, configs)
        diverged, stopped = train_members(shared, workdir, configs, ready, allow_base_mismatch)
    for trial in (trial for trial in trials if trial.name in configs):
        if trial.name in diverged:
            trial.status, trial.why = DIVERGED, diverged[trial.name]
        elif trial.name not in stopped:
            trial.status, trial.score = COMPLETE, _score(f"{workdir}/{trial.name}", configs[trial.name])
    return not stopped


def _alone(
    name: str, configs: Mapping[str, ConfigDict], workdir: str, allow_base_mismatch: bool
) -> tuple[dict[str, str], list[str]]:
    """Trains one trial as `train` does; returns what `train_members` returns."""
    try:
        complete = train_run(configs[name], f"{workdir}/{name}", allow_base_mismatch)
    except NotFinite as error:
        return {name: str(error)}, []
    return {}, [] if complete else [name]


def _score(workdir: str, config: ConfigDict) -> float:
    """Returns the validation score of the checkpoint that `evaluate` takes."""
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.metadata(checkpoints.choose(config.select))["score"]
