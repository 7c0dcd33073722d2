"""What a run's folder says of it: config, checkpoint, dataset and saved predictions. No document sees more."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.data import builders
from jaxlora.data.examples import OUTCOMES
from jaxlora.errors import UserError
from jaxlora.eval import calibration, metrics, subgroups, uncertainty
from jaxlora.eval.predictions import Predictions, load
from jaxlora.eval.runs import title
from jaxlora.eval.subgroups import Group
from jaxlora.eval.uncertainty import Interval
from jaxlora.interop import huggingface
from jaxlora.models.techniques import described, spec_of
from jaxlora.partition import partition_of
from jaxlora.train import run_config
from jaxlora.train.checkpoint import Checkpoints

# The figures of a kind that get an interval, with their titles; the first is the one that runs are compared by.
FIGURES = {
    "lm": {"perplexity": "perplexity"},
    "binary": {"auroc": "AUROC", "auprc": "average precision", "f1": "F1, macro"},
    "multiclass": {"auroc": "AUROC, one-vs-rest", "auroc_ovo": "AUROC, one-vs-one", "f1": "F1, macro"},
    "multilabel": {"auroc": "AUROC, macro", "auprc": "average precision, macro", "f1_micro": "F1, micro"},
    "tokens": {"f1": "F1", "precision": "precision", "recall": "recall"},
    "span": {"f1": "F1", "exact": "exact match"},
}


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One split that the run was evaluated on.

    Attributes:
      notes, patients: how many. values: the metrics. intervals: of those of `FIGURES`, over patients.
      positives: patients with a positive note, of a binary task; None of another, or where there are too few to tell.
      calibration: of `calibration.evaluate`; {} of a task that is not of whole notes.
      groups, gaps: of `subgroups`; empty where the predictions have no groups.
    """

    notes: int
    patients: int
    values: dict[str, float]
    intervals: dict[str, Interval]
    positives: int | None
    calibration: dict[str, float]
    groups: tuple[Group, ...]
    gaps: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is known of the language model of a run.

    Attributes:
      base: its name. base_parameters: how many; None where the base is not here. base_fingerprint: of its tensors.
      adapters: their descriptions, as a config has them. earlier: the dataset of the run that an adapter is from.
      partitions: parameters by name, those in the checkpoint. trained: the names of those that were trained.
      update: that the evaluated checkpoint is of. score: its score on validation; None where there was no validation.
    """

    base: str
    base_parameters: int | None
    base_fingerprint: str
    adapters: dict[str, str]
    earlier: dict[str, str]
    partitions: dict[str, int]
    trained: frozenset[str]
    update: int
    score: float | None


@dataclasses.dataclass(frozen=True)
class Words:
    """What is known of a run of TF-IDF: the most words and pairs of words that it reads, the values of C that were
    tried, the one that was taken and its AUROC on validation."""

    most: int
    tried: tuple[float, ...]
    c: float
    auroc: float


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of one run.

    Attributes:
      row: the line of the paper's tables that its settings are. config: its own. kind, labels: of its predictions.
      model: what was trained. dataset: its name. splits: its notes by split; {} where the prepared dataset is not here.
      evaluated: by split.
    """

    row: str
    config: ConfigDict
    kind: str
    labels: tuple[str, ...]
    model: Trained | Words
    dataset: str
    splits: dict[str, int]
    evaluated: dict[str, Evaluated]

    @property
    def title(self) -> str:
        """What the documents are about; step 1 is no line of the tables of outcomes."""
        step_1 = f"language model with adapter {' + '.join(self.config.active) or 'none'}"
        return f"{step_1 if self.kind == 'lm' else self.row}, {self.dataset}"


def gather(workdir: str, resamples: int = 2000) -> Facts:
    """Returns what is known of the run in `workdir`.

    Raises:
      UserError: it is no trained run, or was not evaluated.
    """
    config = run_config.read(workdir)
    saved = sorted(Path(workdir).glob("predictions-*.npz"))
    predictions = {path.stem.removeprefix("predictions-"): load(path) for path in saved}
    if not predictions:
        raise UserError(f"--workdir: {workdir} was not evaluated; run `jaxlora evaluate --workdir={workdir}` first")
    one = next(iter(predictions.values()))
    return Facts(
        row=title(config),
        config=config,
        kind=one.kind,
        labels=one.names,
        model=_words(workdir, config) if "tfidf" in config else _trained(workdir, config),
        dataset=config.data.name,
        splits=_splits(config),
        evaluated={split: _evaluated(of, resamples) for split, of in predictions.items()},
    )


def _words(workdir: str, config: ConfigDict) -> Words:
    """Returns what the log says of the choice of C, which of equals takes the last."""
    lines = (Path(workdir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    best = max(reversed([json.loads(line) for line in lines]), key=lambda line: line["auroc"])
    return Words(config.tfidf.words, tuple(config.tfidf.c), best["c"], best["auroc"])


def _trained(workdir: str, config: ConfigDict) -> Trained:
    with Checkpoints(workdir) as checkpoints:
        update = checkpoints.choose(config.select)
        metadata, shapes = checkpoints.metadata(update), checkpoints.shapes(update)
    here = (Path(config.base) / "config.json").exists()
    partitions: dict[str, int] = {}
    for name, shape in shapes.items():
        of = partition_of(tuple(name.split("/")))
        partitions[of] = partitions.get(of, 0) + int(np.prod(shape, dtype=np.int64))
    present = [name for name in partitions if not name.startswith("initial/")]
    return Trained(
        base=huggingface.public_name(config.base),
        base_parameters=huggingface.base_parameters(config.base) if here else None,
        base_fingerprint=metadata["base"],
        adapters={name: described(spec_of(fields)) for name, fields in metadata["adapters"].items()},
        earlier=_earlier(config),
        partitions=dict(sorted(partitions.items())),
        trained=frozenset().union(*(partition.matched(pattern, present) for pattern in config.trainable)),
        update=update,
        score=metadata["score"] if np.isfinite(metadata["score"]) else None,
    )


def _evaluated(predictions: Predictions, resamples: int) -> Evaluated:
    p, outcome = predictions, predictions.kind in OUTCOMES
    values = metrics.evaluate(p)
    groups = tuple(subgroups.evaluate([p], resamples=resamples)) if outcome else ()
    positives = None
    if p.kind == "binary":
        count, others = (len(np.unique(p.patients[p.labels == label])) for label in (1, 0))
        positives = count if min(count, others) >= subgroups.LEAST else None
    return Evaluated(
        notes=len(p.ids),
        patients=len(np.unique(p.patients)),
        values=values,
        intervals=uncertainty.intervals(p, FIGURES[p.kind], resamples),
        positives=positives,
        calibration=calibration.evaluate(p) if outcome else {},
        groups=groups,
        gaps=subgroups.gaps(groups, values["auroc"]) if groups else {},
    )


def _earlier(config: ConfigDict) -> dict[str, str]:
    """Returns the dataset of the run that each adapter is from, where that run is here."""
    found: dict[str, Any] = {}
    for name, adapter in config.adapters.items():
        if adapter.workdir and (Path(adapter.workdir) / "config.json").exists():
            found[name] = run_config.read(adapter.workdir).data.name
    return found


def _splits(config: ConfigDict) -> dict[str, int]:
    if config.data.name not in builders.names(config.data.dir):
        return {}
    return builders.load(config.data.dir, config.data.name).splits
