"""`jaxlora reproduce`: a table of the paper by one command.

Every figure comes from an ordinary run folder under `WORKDIR/runs/BASE/TASK/ROW/seed-N`. A folder with a score is done;
one without is trained, or goes on from its last checkpoint. So a table grows by asking for more of it. With
`config.search` each cell is searched before (`searches.py`).
"""

import dataclasses
import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files, workers
from jaxlora.config import field_of
from jaxlora.data import builders
from jaxlora.errors import UserError, one_of
from jaxlora.programs import programs
from jaxlora.reproduce import latex, markdown, searches, small
from jaxlora.reproduce.collect import row_of
from jaxlora.reproduce.comparisons import compared
from jaxlora.reproduce.page import html
from jaxlora.reproduce.results import Table
from jaxlora.reproduce.runs import SCALES, Job, clinical_line, jobs_of, needs_clinical
from jaxlora.reproduce.tables import BASES, TABLES, TASKS, PaperRow, PaperTable
from jaxlora.reproduce.work import BEST, SCORE, make, search
from jaxlora.train import run_config

_NO_VERDICT = (
    "no verdicts: a generated cohort and small bases show that every row runs, and nothing about the paper's figures."
)


def reproduce(
    config: ConfigDict,
    workdir: str,
    number: str,
    tasks: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: int = 1,
    scale: str = "full",
    changed: Sequence[str] = (),
) -> Table:
    """Makes the runs of a table that are missing and writes `WORKDIR/table-NUMBER.{json,md,tex,html}`.

    Args:
      config: of `configs/reproduce.py`.
      number: "2", "3" or "4". tasks, rows: of the table; () for all.
      seeds: how many runs each cell is the mean of, the first of them `config.seed`.
      scale: "full", on prepared datasets and the bases of `config.bases`, or "demo".
      changed: the fields of the config that its file has otherwise, for the command under the table.

    Raises:
      UserError: there is no such table, row, task or dataset, or a run cannot be made.
    """
    paper, lines, tasks = _chosen(config, number, tasks, rows, seeds, scale)
    command = _command(config, number, tasks if tasks != tuple(TASKS) else (), rows, seeds, scale, changed)
    folder, drawn = Path(workdir).absolute(), tuple(range(config.seed, config.seed + seeds))
    jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
    if scale == "demo":
        kinds = {BASES[line.base].kind for line in lines}
        small.set_up(config, folder / "demo", kinds, tuple(line.base for line in lines))
    why = {line.name: _not_run(config, line) for line in lines}
    present = [line for line in lines if not why[line.name]]
    bases = dict.fromkeys(line.base for line in present if needs_clinical(line))
    step_1 = [job for base in bases for job in jobs_of(config, scale, clinical_line(base), (), drawn[:1], folder)]
    jobs = {line.name: jobs_of(config, scale, line, tasks, drawn, folder) for line in present}
    beside = {} if config.search.method else _beside(config, scale, paper, jobs, tasks, drawn, folder)
    every = [job for of_line in jobs.values() for job in of_line]
    counts, what = _counts([*step_1, *every]), paper.title.partition(":")[0]
    _run(config, step_1, "step 1", folder, counts)
    looked_for = searches.searches_of(config, scale, every)
    if looked_for:
        _search(looked_for, f"{what}, searches", folder)
        jobs = {name: [searches.with_best(config, job) for job in of_line] for name, of_line in jobs.items()}
    _run(config, [job for of_line in jobs.values() for job in of_line], what, folder, counts)
    columns, judged = tuple(column for column in paper.columns if column.name in tasks or not tasks), scale == "full"
    table = Table(
        number=int(number),
        title=paper.title,
        metric=paper.metric,
        scale=scale,
        seeds=drawn,
        command=command,
        columns=columns,
        rows=tuple(
            row_of(line, columns, jobs.get(line.name, ()), folder, why[line.name], judged, config.resamples)
            for line in lines
        ),
        no_verdict="" if judged else _NO_VERDICT,
        pairs=compared(paper.pairs, jobs | beside, columns, config.resamples),
        counts=counts,
        remarks=(*paper.remarks, _how(config, number, scale), searches.told(config, looked_for)),
    )
    table.save(folder / f"table-{number}.json")
    files.write(folder / f"table-{number}.md", markdown.write(table))
    files.write(folder / f"table-{number}.tex", latex.write(table))
    html.write(table, folder)
    return table


def _chosen(
    config: ConfigDict, number: str, tasks: Sequence[str], rows: Sequence[str], seeds: int, scale: str
) -> tuple[PaperTable, tuple[PaperRow, ...], tuple[str, ...]]:
    """Returns the table, its lines that were asked for and its tasks, of Table 2 none, both in the paper's order.

    Raises:
      UserError: what `reproduce` was given does not exist.
    """
    if "bases" not in config:
        raise UserError("--config has no part `bases`; give configs/reproduce.py")
    paper = TABLES[int(one_of("--table", number, map(str, TABLES)))]
    one_of("--scale", scale, SCALES)
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; give 1 or more")
    if config.resamples < 1:
        raise UserError(f"config.resamples is {config.resamples}; it must be 1 or more")
    for name, given in config.bases.items():
        if given and scale == "demo":
            raise UserError(f"config.bases.{name}: --scale=demo makes its own bases; leave one of the two out")
    names = [line.name for line in paper.rows]
    for name in rows:
        one_of("--rows", name, names)
    for name in tasks:
        one_of("--tasks", name, TASKS)
    if paper is TABLES[2]:
        if tasks:
            raise UserError("--tasks: Table 2 is of step 1 and has no tasks; leave it out")
    else:
        tasks = tuple(name for name in TASKS if name in tasks or not tasks)
        if "pmv" in tasks and scale == "demo" and config.mode == "paper":
            raise UserError(
                "--tasks: pmv in mode paper has BEEP's labels, of which a generated cohort has none; give "
                "--tasks=mor,los,diag,proc"
            )
    if config.search.method:
        searches.check(config, number)
    return paper, _lines(paper, rows), tuple(tasks)


def _lines(paper: PaperTable, rows: Sequence[str]) -> tuple[PaperRow, ...]:
    """Returns the lines of a table that were asked for, all for (). One that is put on a line which is not among them
    has that one's title too, as it would else be read as put on whatever stands above it."""
    found, upon = [], None
    for line in paper.rows:
        upon = line if line.title.startswith("+ ") else upon
        if line.name in rows or not rows:
            alone = line.title.startswith("++") and rows and upon.name not in rows
            found.append(dataclasses.replace(line, title=f"{upon.title} {line.title}") if alone else line)
    return tuple(found)


def _not_run(config: ConfigDict, line: PaperRow) -> str:
    """Returns why a line cannot be run, or ""."""
    if not BASES[line.base].kind:
        return ""
    given = config.bases[line.base]
    if not given:
        return f"give --config.bases.{line.base}=HF_DIR"
    if not (Path(given) / "config.json").exists():
        raise UserError(f"config.bases.{line.base}: {given} has no config.json; give a Hugging Face directory")
    return ""


def _counts(jobs: Sequence[Job]) -> dict[str, dict[str, int]]:
    """Returns the notes of each dataset by split; raises UserError where one is not prepared."""
    names = dict.fromkeys((job.config.data.dir, job.config.data.name) for job in jobs)
    return {name: dict(builders.load(folder, name).splits) for folder, name in names}


def _run(config: ConfigDict, jobs: Sequence[Job], what: str, workdir: Path, counts: Mapping[str, dict]) -> None:
    """Makes the runs that have no score yet, several as one program where that can be.

    A run of step 1 is alone, as its wall time is a figure. Those with the most notes share a program first, since a
    member that has made its updates waits for the others.

    Args:
      counts: of `_counts`.

    Raises:
      UserError: a run that is there was made with another config, or what a run raises.
    """
    missing = _missing(jobs, SCORE, what, workdir)
    alone = [name for name, job in missing.items() if not (job.task and job.config.trainable)]
    ordered = sorted(missing.keys() - alone, key=lambda name: (-counts[missing[name].config.data.name]["train"], name))
    configs = {name: missing[name].config for name in ordered}
    together = programs(configs, _width(config), {name: _labels(config) for name, config in configs.items()})
    units = [*({name: missing[name].config} for name in alone), *together]
    _all(make, {tuple(unit): (unit, str(workdir), config.resamples) for unit in units}, what, "run")


def _labels(config: ConfigDict) -> int:
    return len(builders.load(config.data.dir, config.data.name).task.outputs)


def _width(config: ConfigDict) -> int:
    """Returns how many runs are trained as one program at the most."""
    return config.together or (1 if jax.default_backend() == "cpu" else 4)


def _search(jobs: Sequence[Job], what: str, workdir: Path) -> None:
    """Makes the searches that have no best trial yet.

    Raises:
      UserError: a search that is there was made with another config, or what a search raises.
    """
    missing = _missing(jobs, BEST, what, workdir)
    _all(search, {(name,): (job.config, str(job.folder), name) for name, job in missing.items()}, what, "search")


def _missing(jobs: Sequence[Job], done: str, what: str, workdir: Path) -> dict[str, Job]:
    """Returns the jobs whose folder has no file `done` yet, by that folder's place under the workdir."""
    missing, unique = {}, {job.folder: job for job in jobs}
    for place, job in unique.items():
        if (place / "config.json").exists():
            run_config.check_same(str(place), job.config)
        if not (place / done).exists():
            missing[str(place.relative_to(workdir))] = job
    print(f"{what}: {len(unique)} runs, {len(unique) - len(missing)} of them made before", flush=True)
    return missing


def _beside(
    config: ConfigDict,
    scale: str,
    paper: PaperTable,
    rows: Collection[str],
    tasks: tuple[str, ...],
    seeds: tuple[int, ...],
    folder: Path,
) -> dict[str, list[Job]]:
    """Returns the runs of the rows of Table 3 that some rows of a table are compared with, of those that are all there.

    Raises:
      UserError: one was made with another config.
    """
    wanted = {pair.other for pair in paper.pairs if pair.one in rows} - {line.name for line in paper.rows}
    lines = [line for line in TABLES[3].rows if line.name in wanted]
    jobs = {line.name: jobs_of(config, scale, line, tasks, seeds, folder) for line in lines}
    found = {name: of for name, of in jobs.items() if all((job.folder / SCORE).exists() for job in of)}
    for job in (job for of in found.values() for job in of):
        run_config.check_same(str(job.folder), job.config)
    return found


def _all(function: Callable, units: Mapping[tuple[str, ...], tuple], what: str, unit: str) -> None:
    """Calls a function with each unit's arguments; what its names name is done then."""
    with tqdm(total=sum(map(len, units)), desc=what, unit=unit, disable=not units) as bar:
        for names, _ in workers.run_all(function, units):
            bar.write("\n".join(names))
            bar.update(len(names))


def _how(config: ConfigDict, number: str, scale: str) -> str:
    """Returns what of the config decides what the rows read, and how they are measured."""
    length, paper = config.demo.length if scale == "demo" else config.data.length, config.mode == "paper"
    if number == "2":
        batch = config[scale].clinical.batch_size // config[scale].clinical.accumulate
        published = f"exp of the mean over micro-batches of {batch} notes, as published, which has no interval"
        measured = f"test perplexity is {published if paper else 'per token, over all tokens'}"
    else:
        ranked = "by a softmax over them, as published" if paper else "by their logits, and have no verdict"
        measured = f"the labels of DIAG and PROC are ranked {ranked}"
    return f"Mode {config.mode}, {length} tokens of each note; {measured}."


def _command(
    config: ConfigDict,
    number: str,
    tasks: Sequence[str],
    rows: Sequence[str],
    seeds: int,
    scale: str,
    changed: Sequence[str],
) -> str:
    """Returns the command that makes the table again, without this machine's paths."""
    parts = [f"jaxlora reproduce --table={number}"]
    parts += [f"--tasks={','.join(tasks)}"] if tasks else []
    parts += [f"--rows={','.join(rows)}"] if rows else []
    parts += [f"--seeds={seeds}"] if seeds > 1 else []
    parts += [f"--scale={scale}"] if scale != "full" else []
    given = [f"--config.{field}={_given(config, field)}" for field in changed]
    return " ".join([*parts, "--config=configs/reproduce.py", *map(shlex.quote, given), "--workdir=RUNS"])


def _given(config: ConfigDict, field: str) -> str:
    """Returns the value of a field as a flag has it, a placeholder for a folder."""
    value = field_of(config, field)
    if field.startswith("bases."):
        return "HF_DIR"
    return "DIR" if field == "data.dir" or isinstance(value, str) and os.sep in value else str(value)
