"""Many evaluated runs to one table and its figures, from their saved predictions alone."""

from pathlib import Path

import numpy as np

from jaxlora import files
from jaxlora.data.examples import OUTCOMES
from jaxlora.errors import UserError
from jaxlora.eval import figures, metrics, sections
from jaxlora.eval.runs import EvaluatedRun, find_runs

# The columns of a task's table: metric and title; runs are compared by the first one.
_COLUMNS = {
    "tokens": {"f1": "F1", "precision": "precision", "recall": "recall", "accuracy": "token accuracy"},
    "span": {"f1": "F1", "exact": "exact match", "f1_answerable": "F1, answerable", "none_found": "none, rightly"},
}
_OF_NOTES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "accuracy": "accuracy"}


def report(folder: str | Path, seconds: float | None = None) -> str:
    """Writes `report.json`, `report.md` and `figures/*.png` into `folder`, from every evaluated run under it.

    Runs of one row and task, such as those of several seeds, are averaged; the table gives their number and spread. The
    members of a sweep have a line each. What `sections` tells of a task follows in the files.

    Args:
      seconds: wall time of the whole, where it is known.

    Returns:
      The Markdown table.

    Raises:
      UserError: what `find_runs` raises, or a folder in a bucket.
    """
    if str(folder).startswith("gs://"):
        raise UserError(f"--workdir: {folder} is in a bucket; copy the runs to a folder here first")
    folder = Path(folder)
    runs = find_runs(folder)
    corpora = [run for run in runs if run.predictions.kind == "lm" and run.active]
    tasks: dict[str, dict[str, list[EvaluatedRun]]] = {}
    for run in (run for run in runs if run.predictions.kind != "lm"):
        tasks.setdefault(run.dataset, {}).setdefault(run.row, []).append(run)
    columns = {task: _COLUMNS.get(_first(rows).predictions.kind, _OF_NOTES) for task, rows in tasks.items()}
    adapted = _adapted(corpora)
    summary = {"perplexity": _perplexity(adapted), "tasks": {}}
    for task, rows in tasks.items():
        of_task = {row: [metrics.evaluate(run.predictions) for run in of] for row, of in rows.items()}
        summary["tasks"][task] = {row: _mean(values, columns[task]) for row, values in of_task.items()}
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    pictures = folder / "figures"
    text = _markdown(summary, columns)
    parts = [text]
    for task, rows in tasks.items():
        if _first(rows).predictions.kind in OUTCOMES:
            section = sections.write(pictures, task, rows)
            summary["tasks_in_detail"] = summary.get("tasks_in_detail", {}) | {task: section.summary}
            parts += [f"## {task}\n\n{section.text}", _shown(section.figures)]
    panels = ({"notes": adapted} if adapted else {}) | tasks
    logs = {title: {row: [run.log for run in of] for row, of in rows.items()} for title, rows in panels.items()}
    loss = figures.losses(pictures / "loss.png", logs)
    if loss:
        parts += ["## Training\n", _shown([loss])]
    files.write_json(folder / "report.json", summary)
    files.write(folder / "report.md", "\n".join(parts))
    return text


def _first(rows: dict[str, list[EvaluatedRun]]) -> EvaluatedRun:
    return next(iter(rows.values()))[0]


def _adapted(corpora: list[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    """Returns the language-model runs by their active adapters, by what these are where they are of several kinds, and
    by base where there are several; the members of a sweep each."""
    rows: dict[str, list[EvaluatedRun]] = {}
    several = len({run.technique for run in corpora}) > 1
    for run in corpora:
        parts = ["+".join(run.active), run.technique if several else "", run.base_name, run.member]
        rows.setdefault(", ".join(filter(None, parts)), []).append(run)
    return rows


def _perplexity(adapted: dict[str, list[EvaluatedRun]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for name, runs in adapted.items():
        for run in runs:
            values = metrics.evaluate(run.predictions)
            found.setdefault(f"base, {run.base_name}" if run.base_name else "base", []).append(
                values["base_perplexity"]
            )
            found.setdefault(name, []).append(values["perplexity"])
    return {name: float(np.mean(of)) for name, of in found.items()}


def _shown(paths: list[Path]) -> str:
    return "".join(f"![{path.stem}](figures/{path.name})\n" for path in paths)


def _mean(values: list[dict[str, float]], columns: dict[str, str]) -> dict[str, float]:
    result = sections.mean([{name: of[name] for name in columns} for of in values]) | {"n": values[0]["n"]}
    if len(values) > 1:
        first = next(iter(columns))
        result |= {"runs": len(values), f"{first}_sd": float(np.std([v[first] for v in values], ddof=1))}
    return result


def _markdown(summary: dict, columns: dict[str, dict[str, str]]) -> str:
    lines = ["# Report", ""]
    if summary["perplexity"]:
        names, values = summary["perplexity"].keys(), summary["perplexity"].values()
        lines += ["Perplexity per token on held-out patients:", "", f"| {' | '.join(names)} |"]
        lines += ["|" + "---:|" * len(names), f"| {' | '.join(f'{value:.2f}' for value in values)} |", ""]
    for task, rows in summary["tasks"].items():
        count = next(iter(rows.values()))["n"]
        lines += [f"**{task}**, {count:,} notes of held-out patients:", ""]
        lines += [f"| row | {' | '.join(columns[task].values())} |", "|---|" + "---:|" * len(columns[task])]
        for row, v in rows.items():
            cells = [f"{v[name]:.3f}" for name in columns[task]]
            if "runs" in v:
                cells[0] += f" ± {v[f'{next(iter(columns[task]))}_sd']:.3f} ({v['runs']} runs)"
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    if "seconds" in summary:
        lines += [f"The whole took {summary['seconds']:.0f} seconds.", ""]
    return "\n".join(lines)
