"""From a line of a table to the configs of its runs, each an ordinary run folder."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from jaxlora import config as config_module
from jaxlora.config import adapter, default
from jaxlora.data.examples import named
from jaxlora.interop.llama_config import read_config
from jaxlora.reproduce.tables import BASES, DOWNSTREAM, TABLES, PaperRow
from jaxlora.rows import ROWS, set_row

SCALES = ("full", "demo")
_NOT_OF_RUNS = (*SCALES, "bases", "resamples", "together", "sizes")  # parts of the config


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: the line and the task ("" for step 1) that it is of, its seed, its config, and its folder."""

    line: PaperRow
    task: str
    seed: int
    config: ConfigDict
    folder: Path


def clinical_folder(workdir: Path, base: str, technique: str, seed: int) -> Path:
    """Returns the folder of a run of step 1."""
    return workdir / "runs" / base / "clinical" / technique / f"seed-{seed}"


def jobs_of(
    config: ConfigDict, scale: str, line: PaperRow, tasks: tuple[str, ...], seeds: tuple[int, ...], workdir: Path
):
    """Returns the runs of a line: one for each task and seed, or of Table 2 one for each seed. TF-IDF draws nothing: it
    has one run a task, of the first seed.

    Args:
      config: of `configs/reproduce.py`, its `bases` and `data.dir` set.
    """
    if line.row == "clinical":
        return [step_1(config, config[scale], line, seed, workdir) for seed in seeds]
    seeds = seeds[:1] if line.row == "tfidf" else seeds
    return [_outcome(config, config[scale], line, task, seed, workdir) for task in tasks for seed in seeds]


def step_1(config: ConfigDict, sizes: ConfigDict, line: PaperRow, seed: int, workdir: Path) -> Job:
    """Returns the run of step 1 of a line of Table 2."""
    run = _common(config, line, seed)
    run.data.name = named(f"clinical_corpus/{sizes.corpus}", config.mode)
    run.data.long_notes = "truncate"  # as the paper: the first tokens of each note
    of_layers = {"targets": sizes.targets} if line.technique == "adapter" else {}
    given = dict(line.sizes)
    if line.technique == "adaptation_prompt":
        given["layers"] = min(given["layers"], read_config(run.base).layers)
    run.adapters = ConfigDict({"clinical": getattr(config_module, line.technique)(**given, **of_layers)})
    run.active = run.trainable = ("clinical",)
    _set(run, sizes.clinical, "")
    folder = clinical_folder(workdir, line.base, line.technique, seed)
    return Job(line, "", seed, run, folder)


def clinical_line(base: str) -> PaperRow:
    """Returns the line of Table 2 whose adapter the rows of Table 3 build on: the LoRA of their base."""
    return next(line for line in TABLES[2].rows if (line.base, line.technique) == (base, "adapter"))


def needs_clinical(line: PaperRow) -> bool:
    """Returns whether a line builds on an adapter of step 1."""
    return line.row in ROWS and "clinical" in ROWS[line.row].adapters


def _outcome(config: ConfigDict, sizes: ConfigDict, line: PaperRow, task: str, seed: int, workdir: Path) -> Job:
    run = _common(config, line, seed)
    run.data.name = f"mimic3_admission/{named(task, config.mode)}"
    kind = BASES[line.base].kind
    if line.row == "tfidf":
        run.adapters, run.active, run.trainable = ConfigDict(), (), ()
    else:
        del run.tfidf
        set_row(run, line.row, ("query", "value") if kind == "encoder" else tuple(sizes.targets))
    if "clinical" in run.adapters:
        step_1_of = str(clinical_folder(workdir, line.base, "adapter", config.seed))
        given = clinical_line(line.base).sizes
        run.adapters.clinical = adapter(**given, targets=tuple(sizes.targets), workdir=step_1_of)
    if "downstream" in run.adapters and kind == "llama" and sizes.swept:
        run.adapters.downstream = adapter(*DOWNSTREAM[task], targets=tuple(sizes.targets))
    _set(run, part_of(line, sizes), task)
    folder = workdir / "runs" / line.base / task / line.row / f"seed-{seed}"
    return Job(line, task, seed, run, folder)


def part_of(line: PaperRow, sizes: ConfigDict) -> ConfigDict:
    """Returns the part of a scale's settings that a line of Table 3 or 4 takes its learning rate and batch from."""
    if BASES[line.base].kind == "encoder":
        return sizes.encoder
    return sizes[{"lora": "lora", "full": "whole"}.get(line.row, "head")]


def _common(config: ConfigDict, line: PaperRow, seed: int) -> ConfigDict:
    """Returns what every run of a line has."""
    run = config.copy_and_resolve_references()
    run.unlock()
    for name in _NOT_OF_RUNS:
        del run[name]
    run.base, run.seed, run.search = config.bases.get(line.base, ""), seed, default().search
    if config.mode == "paper":
        run.decay, run.select = "paper", "last"
    return run


def _set(run: ConfigDict, part: ConfigDict, task: str) -> None:
    """Sets learning rate, epochs and batch of a run; a task may have a learning rate of its own."""
    run.learning_rate = part.get(f"learning_rate_{task}", part.learning_rate)
    run.epochs, run.batch_size, run.accumulate = part.epochs, part.batch_size, part.accumulate
    if run.decay == "paper":
        run.paper_accumulate = part.accumulate
