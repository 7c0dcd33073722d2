"""`jaxlora prepare`: every dataset that a config names, from its tables to array_record."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jaxlora import files
from jaxlora.data import builders, generic, mimic, tasks
from jaxlora.data.examples import Example, Task, check_shares, load_key
from jaxlora.data.notes import admission_notes
from jaxlora.errors import UserError

MIMIC_TASKS = {
    "mortality": tasks.mortality,
    "length_of_stay": tasks.length_of_stay,
    "diagnoses": tasks.diagnoses,
    "procedures": tasks.procedures,
}


def prepare(config, out_dir: str | Path) -> None:
    """Builds the datasets of `config.datasets` and, from `config.mimic3`, notes, outcomes and codes of MIMIC-III.

    Files are readable by their owner only. The key of the identifiers, `id.key`, is kept when datasets are prepared
    again, so that ids stay the same; `flow.md` and `flow.json` count what the MIMIC-III recipe left out and why.

    Args:
      config: `datasets`, `mimic3` and `split` are read.
      out_dir: the folder of prepared datasets.

    Raises:
      UserError: nothing is to be prepared, or a table is wrong; the dataset it belongs to stays as it was.
    """
    if not config.datasets and not config.mimic3:
        raise UserError("neither datasets nor mimic3 is set; name your tables in datasets, or a MIMIC-III folder")
    taken = {"notes", *MIMIC_TASKS} & set(config.datasets) if config.mimic3 else set()
    if taken:
        raise UserError(f"datasets.{min(taken)}: mimic3 makes a dataset of this name; choose another")
    check_shares(config.split)
    previous = os.umask(0o077)
    try:
        key = load_key(out_dir)
        for name, dataset in config.datasets.items():
            _build(out_dir, *generic.read(name, dataset, config.split, key))
        if config.mimic3:
            _mimic(config, out_dir, key)
    finally:
        os.umask(previous)


def _mimic(config, out_dir: str | Path, key: bytes) -> None:
    folder = Path(config.mimic3)
    flow: dict[str, Counter[str]] = {"admission notes": Counter()}
    admissions = mimic.admissions(folder)
    notes = admission_notes(folder, admissions, flow["admission notes"])
    cohort = tasks.Cohort(folder, admissions, config.split, key)
    for name, make in MIMIC_TASKS.items():
        flow[name] = Counter()
        _build(out_dir, *make(cohort, notes, flow[name]))
    flow["notes"] = Counter()
    _build(out_dir, *tasks.corpus(cohort, flow["notes"]))
    files.write_json(Path(out_dir) / "flow.json", flow)
    files.write(Path(out_dir) / "flow.md", _markdown(flow))


def _build(out_dir: str | Path, task: Task, examples: Iterable[Example]) -> None:
    builders.build(out_dir, task, examples)
    splits = builders.load(out_dir, task.name).splits
    sizes = ", ".join(f"{size:,} {split}" for split, size in splits.items())
    print(f"{task.name}: {task.kind}, {sizes}" + (f", {len(task.labels)} labels" if task.labels else ""))


def _markdown(flow: dict[str, Counter[str]]) -> str:
    lines = ["| dataset | what | count |", "|---|---|---:|"]
    lines += [f"| {name} | {what} | {count:,} |" for name, counts in flow.items() for what, count in counts.items()]
    return "\n".join(lines) + "\n"
