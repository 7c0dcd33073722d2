"""Runs of a table from their configs to their scores, files that also say that a run is done; and the search before."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxlora import files, partition, pipeline, sweep
from jaxlora.data import builders
from jaxlora.data.examples import unnamed
from jaxlora.errors import UserError
from jaxlora.eval import metrics, uncertainty
from jaxlora.eval.predictions import Predictions, load
from jaxlora.reproduce import adapters, replicates, tfidf
from jaxlora.search.search import search_run
from jaxlora.train import checkpoint, run_config

SCORE = "score.json"
BEST = "best.json"  # of a search
_LATE = 0.1  # the share of the updates whose loss is the train perplexity


@files.private()
def make(configs: Mapping[str, ConfigDict], workdir: str, resamples: int) -> None:
    """Trains and evaluates runs, or goes on with them, and writes `WORKDIR/NAME/score.json` of each.

    The score holds `cells`, {column: {"value", "low", "high"}} in the unit that the paper prints, and `adapters`, which
    says of a run with an adapter of step 1 what became of its adapters.

    Args:
      configs: of one run, or of several that are trained as one program, each by the run's folder under `workdir`. One
        that trains nothing is TF-IDF's.
      resamples: of the patients, for the intervals.

    Raises:
      UserError: what training and evaluation raise, or SIGTERM stopped the training.
    """
    seconds = _train_together(configs, workdir) if len(configs) > 1 else _train(*configs.items(), workdir)
    for name, config in configs.items():
        folder = f"{workdir}/{name}"
        if config.trainable:
            held_out = builders.load(config.data.dir, config.data.name).splits.get("validation")
            for split in ("validation", "test") if held_out and "head" in config.trainable else ("test",):
                pipeline.evaluate_run(folder, split)
        _score(config, folder, name, resamples, seconds)


@files.private()
def search(config: ConfigDict, folder: str, name: str) -> None:
    """Searches as `config.search` says, or goes on with it, and writes `FOLDER/best.json`.

    Raises:
      UserError: what the search raises, or SIGTERM stopped it.
    """
    search_run(config, folder)
    if not (Path(folder) / BEST).exists():
        raise _stopped([name])


def _train(run: tuple[str, ConfigDict], workdir: str) -> float | None:
    """Trains one run and returns its wall time in seconds; None where it went on from a checkpoint."""
    name, config = run
    folder = f"{workdir}/{name}"
    if not config.trainable:
        tfidf.fit(config, folder)
        return None
    begun, before = time.monotonic(), checkpoint.exists(folder)
    if not pipeline.train_run(config, folder):
        raise _stopped([name])
    return None if before else time.monotonic() - begun


def _train_together(configs: Mapping[str, ConfigDict], workdir: str) -> None:
    """Trains runs as one program, which is the wall time of none of them."""
    shared = next(iter(configs.values()))
    ready = sweep.read_members(shared, workdir, configs)
    failed, stopped = sweep.train_members(shared, workdir, configs, ready)
    if failed:
        raise UserError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    if stopped:
        raise _stopped(stopped)


def _stopped(names: Sequence[str]) -> UserError:
    return UserError(f"{', '.join(names)}: stopped by SIGTERM; the same command goes on from there")


def _score(config: ConfigDict, folder: str, name: str, resamples: int, seconds: float | None) -> None:
    """Writes the score of an evaluated run."""
    predictions, found = load(Path(folder) / "predictions-test.npz"), []
    if predictions.kind == "lm":
        cells = _of_step_1(config, folder, predictions, resamples, seconds)
    else:
        task = unnamed(config.data.name.rpartition("/")[2])[0]
        cells = {task: _of_test(folder, config.mode, resamples, 100)}
        if "clinical" in config.adapters:
            found = [vars(adapter) for adapter in adapters.adapters_of(folder, name)]
    files.write_json(Path(folder) / SCORE, {"cells": cells, "adapters": found})


def _of_test(folder: str, mode: str, resamples: int, unit: float) -> dict[str, float]:
    """Returns the metric of the test notes with its interval, times `unit`."""
    sampled = replicates.of_run(folder, mode, resamples).sampled
    low, high = uncertainty.interval(sampled)
    return {"value": unit * sampled.value, "low": unit * low, "high": unit * high}


def _of_step_1(
    config: ConfigDict, folder: str, predictions: Predictions, resamples: int, seconds: float | None
) -> dict[str, dict]:
    """Returns the cells of Table 2; a run that was stopped and went on has no wall time.

    In mode "paper" the test perplexity is exp of the mean over micro-batches. It has no interval: which notes share a
    batch is a matter of their order, so it is no function of the weights of patients.
    """
    if config.mode == "paper":
        of_batches = metrics.evaluate(predictions, batch_size=config.batch_size // config.paper_accumulate)
        test = {"value": of_batches["perplexity_paper"]}
    else:
        test = _of_test(folder, config.mode, resamples, 1)
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [loss for loss in (json.loads(line).get("loss") for line in lines) if loss is not None]
    late = losses[-max(1, round(_LATE * len(losses))) :]
    return {
        "trainable": {"value": _trainable(folder)},
        "train_ppl": {"value": float(np.exp(np.mean(late)))},
        "test_ppl": test,
        "seconds": {"value": seconds},
    }


def _trainable(folder: str) -> int:
    """Returns how many parameters of a run were trained, from its checkpoint."""
    names = {f"adapter/{name}" for name in run_config.read(folder).trainable}
    with checkpoint.Checkpoints(folder) as checkpoints:
        stored = checkpoints.load_numpy(checkpoints.latest)
    return sum(value.size for path, value in stored.items() if partition.partition_of(path) in names)
