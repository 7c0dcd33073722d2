"""Many evaluated runs to one table and its figures, from their saved predictions alone."""

from pathlib import Path

import numpy as np

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.eval import figures, metrics, sections
from jaxlora.eval.runs import find_runs

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
    outcomes = [run for run in runs if run.predictions.kind != "lm"]
    summary = {"perplexity": {}, "tasks": {}}
    for run in corpora:
        values = metrics.evaluate(run.predictions)
        adapted = ", ".join(["+".join(run.active), *([run.member] if run.member else [])])
        for name, value in (("base", "base_perplexity"), (adapted, "perplexity")):
            summary["perplexity"].setdefault(name, []).append(values[value])
    columns = {}
    for run in outcomes:
        columns[run.dataset] = _COLUMNS.get(run.predictions.kind, _OF_NOTES)
        rows = summary["tasks"].setdefault(run.dataset, {})
        rows.setdefault(run.row, []).append(metrics.evaluate(run.predictions))
    summary["perplexity"] = {name: float(np.mean(of)) for name, of in summary["perplexity"].items()}
    summary["tasks"] = {
        task: {row: _mean(of, columns[task]) for row, of in rows.items()} for task, rows in summary["tasks"].items()
    }
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    made = figures.draw(folder / "figures", corpora, outcomes)
    text = _markdown(summary, columns)
    parts = [text, _pictures(made)]
    for task, section in sections.write(folder / "figures", outcomes).items():
        summary["tasks_in_detail"] = summary.get("tasks_in_detail", {}) | {task: section.summary}
        parts += [f"## {task}\n\n{section.text}", _pictures(section.figures)]
    files.write_json(folder / "report.json", summary)
    files.write(folder / "report.md", "\n".join(parts))
    return text


def _pictures(paths: list[Path]) -> str:
    return "".join(f"![{path.stem}](figures/{path.name})\n" for path in paths)


def _mean(values: list[dict[str, float]], columns: dict[str, str]) -> dict[str, float]:
    result = {name: float(np.mean([v[name] for v in values])) for name in columns}
    result["n"] = values[0]["n"]
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
