"""`jaxlora reproduce`: a table of the paper by one command.

Every figure comes from an ordinary run folder under `WORKDIR/runs/BASE/TASK/ROW/seed-N`. A folder with a score is done;
one without is trained, or goes on from its last checkpoint. So a table grows by asking for more of it.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import files, workers
from jaxlora.data import builders
from jaxlora.errors import UserError, one_of
from jaxlora.reproduce import html, latex, markdown, small
from jaxlora.reproduce.collect import row_of
from jaxlora.reproduce.results import Table
from jaxlora.reproduce.runs import SCALES, Job, clinical_line, jobs_of, needs_clinical
from jaxlora.reproduce.tables import BASES, PLANS, TASKS, Line, Plan
from jaxlora.reproduce.work import SCORE, make
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
) -> Table:
    """Makes the runs of a table that are missing and writes `WORKDIR/table-NUMBER.{json,md,tex,html}`.

    Args:
      config: of `configs/reproduce.py`.
      number: "2", "3" or "4". tasks, rows: of the table; () for all.
      seeds: how many runs each cell is the mean of, the first of them `config.seed`.
      scale: "full", on prepared datasets and the bases of `config.bases`, or "demo".

    Raises:
      UserError: there is no such table, row, task or dataset, or a run cannot be made.
    """
    plan, lines, tasks = _chosen(config, number, tasks, rows, seeds, scale)
    folder, drawn = Path(workdir), tuple(range(config.seed, config.seed + seeds))
    jax.config.update("jax_compilation_cache_dir", str((folder / "compilation_cache").absolute()))
    if scale == "demo":
        kinds = {BASES[line.base].kind for line in lines}
        small.set_up(config, folder / "demo", kinds, tuple(line.base for line in lines))
    why = {line.name: _not_run(config, line) for line in lines}
    present = [line for line in lines if not why[line.name]]
    bases = dict.fromkeys(line.base for line in present if needs_clinical(line))
    step_1 = [job for base in bases for job in jobs_of(config, scale, clinical_line(base), (), drawn[:1], folder)]
    jobs = {line.name: jobs_of(config, scale, line, tasks, drawn, folder) for line in present}
    every = [job for of_line in jobs.values() for job in of_line]
    counts = _counts([*step_1, *every])
    _run(step_1, "step 1", folder, config.resamples)
    _run(every, plan.title.partition(":")[0], folder, config.resamples)
    columns, judged = tuple(column for column in plan.columns if column.name in tasks or not tasks), scale == "full"
    table = Table(
        number=int(number),
        title=plan.title,
        metric=plan.metric,
        scale=scale,
        seeds=drawn,
        command=_command(number, tasks if columns != plan.columns else (), rows, seeds, scale),
        columns=columns,
        rows=tuple(
            row_of(line, columns, jobs.get(line.name, ()), folder, why[line.name], judged, config.resamples)
            for line in lines
        ),
        no_verdict="" if judged else _NO_VERDICT,
        counts=counts,
        remarks=(*plan.remarks, _how(config, scale)),
    )
    table.save(folder / f"table-{number}.json")
    files.write(folder / f"table-{number}.md", markdown.write(table))
    files.write(folder / f"table-{number}.tex", latex.write(table))
    html.write(table, folder)
    return table


def _chosen(
    config: ConfigDict, number: str, tasks: Sequence[str], rows: Sequence[str], seeds: int, scale: str
) -> tuple[Plan, tuple[Line, ...], tuple[str, ...]]:
    """Returns the table, its lines that were asked for and its tasks, of Table 2 none, both in the paper's order.

    Raises:
      UserError: what `reproduce` was given does not exist.
    """
    if "bases" not in config:
        raise UserError("--config has no part `bases`; give configs/reproduce.py")
    plan = PLANS[int(one_of("--table", number, map(str, PLANS)))]
    one_of("--scale", scale, SCALES)
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; give 1 or more")
    names = [line.name for line in plan.lines]
    for name in rows:
        one_of("--rows", name, names)
    for name in tasks:
        one_of("--tasks", name, TASKS)
    if plan is PLANS[2]:
        if tasks:
            raise UserError("--tasks: Table 2 is of step 1 and has no tasks; leave it out")
    else:
        tasks = tuple(name for name in TASKS if name in tasks or not tasks)
    return plan, tuple(line for line in plan.lines if line.name in rows or not rows), tuple(tasks)


def _not_run(config: ConfigDict, line: Line) -> str:
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


def _run(jobs: Sequence[Job], what: str, workdir: Path, resamples: int) -> None:
    """Makes the runs that have no score yet.

    Raises:
      UserError: a run that is there was made with another config, or what a run raises.
    """
    missing, unique = {}, {job.folder: job for job in jobs}
    for place, job in unique.items():
        if (place / "config.json").exists():
            run_config.check_same(str(place), job.config)
        if not (place / SCORE).exists():
            name = str(place.relative_to(workdir))
            missing[name] = (job.config, str(place), name, resamples)
    print(f"{what}: {len(unique)} runs, {len(unique) - len(missing)} of them made before", flush=True)
    with tqdm(total=len(missing), desc=what, unit="run", disable=not missing) as bar:
        for name, _ in workers.run_all(make, missing):
            bar.write(name)
            bar.update()


def _how(config: ConfigDict, scale: str) -> str:
    """Returns what of the config decides what the rows read."""
    length = config.demo.length if scale == "demo" else config.data.length
    ranked = {"paper": "by a softmax over them, as published"}.get(config.mode, "by their logits, and have no verdict")
    return f"Mode {config.mode}, {length} tokens of each note; the labels of DIAG and PROC are ranked {ranked}."


def _command(number: str, tasks: Sequence[str], rows: Sequence[str], seeds: int, scale: str) -> str:
    """Returns the command that makes the table again, without this machine's paths."""
    parts = [f"jaxlora reproduce --table={number}"]
    parts += [f"--tasks={','.join(tasks)}"] if tasks else []
    parts += [f"--rows={','.join(rows)}"] if rows else []
    parts += [f"--seeds={seeds}"] if seeds > 1 else []
    parts += [f"--scale={scale}"] if scale != "full" else []
    return " ".join([*parts, "--config=configs/reproduce.py --workdir=RUNS"])
