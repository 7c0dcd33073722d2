"""One run of a table from its config to its score, a file that also says that it is done."""

import json
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxlora import files, partition, pipeline
from jaxlora.data import builders
from jaxlora.data.examples import unnamed
from jaxlora.errors import UserError
from jaxlora.eval import metrics, uncertainty
from jaxlora.eval.predictions import Predictions, load
from jaxlora.reproduce import adapters, tfidf
from jaxlora.train import checkpoint, run_config

SCORE = "score.json"
_LATE = 0.1  # the share of the updates whose loss is the train perplexity


@files.private()
def make(config: ConfigDict, folder: str, name: str, resamples: int) -> None:
    """Trains and evaluates one run, or goes on with it, and writes `FOLDER/score.json`.

    The score holds `cells`, {column: {"value", "low", "high"}} in the unit that the paper prints, and `adapters`, which
    says of a run with an adapter of step 1 what became of its adapters.

    Args:
      config: of the run; one that trains nothing is TF-IDF's. name: what the result calls the run.
      resamples: of the patients, for the intervals.

    Raises:
      UserError: what training and evaluation raise, or SIGTERM stopped the training.
    """
    if not config.trainable:
        tfidf.fit(config, folder)
    else:
        begun, before = time.monotonic(), checkpoint.exists(folder)
        if not pipeline.train_run(config, folder):
            raise UserError(f"{name}: stopped by SIGTERM; the same command goes on from there")
        seconds = None if before else time.monotonic() - begun
        held_out = builders.load(config.data.dir, config.data.name).splits.get("validation")
        for split in ("validation", "test") if held_out and "head" in config.trainable else ("test",):
            pipeline.evaluate_run(folder, split)
    predictions, found = load(Path(folder) / "predictions-test.npz"), []
    if predictions.kind == "lm":
        cells = _of_step_1(folder, predictions, resamples, seconds)
    else:
        task = unnamed(config.data.name.rpartition("/")[2])[0]
        cells = {task: _auroc(predictions, config.mode, resamples)}
        if "clinical" in config.adapters:
            found = [vars(adapter) for adapter in adapters.adapters_of(folder, name)]
    files.write_json(Path(folder) / SCORE, {"cells": cells, "adapters": found})


def metric_of(kind: str, mode: str) -> str:
    """Returns the metric of an outcome that the paper has: of several classes the one-vs-one AUROC; of several labels,
    in `mode` "paper", by a softmax over them."""
    of_labels = "auroc_paper" if mode == "paper" else "auroc"
    return {"multiclass": "auroc_ovo", "multilabel": of_labels}.get(kind, "auroc")


def _auroc(predictions: Predictions, mode: str, resamples: int) -> dict[str, float]:
    metric = metric_of(predictions.kind, mode)
    low, high = uncertainty.intervals(predictions, (metric,), resamples)[metric]
    return {"value": 100 * metrics.evaluate(predictions)[metric], "low": 100 * low, "high": 100 * high}


def _of_step_1(folder: str, predictions: Predictions, resamples: int, seconds: float | None) -> dict[str, dict]:
    """Returns the cells of Table 2; a run that was stopped and went on has no wall time."""
    low, high = uncertainty.intervals(predictions, ("perplexity",), resamples)["perplexity"]
    value = metrics.evaluate(predictions)["perplexity"]
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [loss for loss in (json.loads(line).get("loss") for line in lines) if loss is not None]
    late = losses[-max(1, round(_LATE * len(losses))) :]
    return {
        "trainable": {"value": _trainable(folder)},
        "train_ppl": {"value": float(np.exp(np.mean(late)))},
        "test_ppl": {"value": value, "low": low, "high": high},
        "seconds": {"value": seconds},
    }


def _trainable(folder: str) -> int:
    """Returns how many parameters of a run were trained, from its checkpoint."""
    names = {f"adapter/{name}" for name in run_config.read(folder).trainable}
    with checkpoint.Checkpoints(folder) as checkpoints:
        stored = checkpoints.load_numpy(checkpoints.latest)
    return sum(value.size for path, value in stored.items() if partition.partition_of(path) in names)
