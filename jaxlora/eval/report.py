"""Many evaluated runs to one table and its figures, from their saved predictions alone."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from jaxlora.errors import UserError
from jaxlora.eval import figures, metrics
from jaxlora.eval.predictions import Predictions, load
from jaxlora.rows import ROWS, title_of


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated run: its dataset, its active adapters, the title of its row, its predictions and its log."""

    dataset: str
    active: tuple[str, ...]
    row: str
    predictions: Predictions
    log: list[dict[str, float]]


def find_runs(folder: str | Path, split: str = "test") -> list[Run]:
    """Returns every evaluated run under `folder`, in the order of the rows of the paper's tables.

    Raises:
      UserError: there is none.
    """
    runs = []
    for path in sorted(Path(folder).rglob(f"predictions-{split}.npz")):
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        row = title_of(tuple(config["active"]), tuple(config["trainable"]), tuple(config["adapters"]))
        log = [json.loads(line) for line in (path.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        runs.append(Run(config["data"]["name"], tuple(config["active"]), row, load(path), log))
    if not runs:
        raise UserError(f"--workdir: no evaluated run under {folder}; run `jaxlora evaluate` on one first")
    order = [row.title for row in ROWS.values()]
    return sorted(runs, key=lambda run: (run.dataset, order.index(run.row) if run.row in order else len(order)))


def report(folder: str | Path, seconds: float | None = None) -> str:
    """Writes `report.json`, `report.md` and `figures/*.png` into `folder`, from every evaluated run under it.

    Runs of one row and task that differ in the seed are averaged; the table gives their number and spread.

    Args:
      seconds: wall time of the whole, where it is known.

    Returns:
      The Markdown table.
    """
    folder = Path(folder)
    runs = find_runs(folder)
    corpora = [run for run in runs if run.predictions.kind == "lm" and run.active]
    outcomes = [run for run in runs if run.predictions.kind != "lm"]
    summary = {"perplexity": {}, "tasks": {}}
    for run in corpora:
        values = metrics.evaluate(run.predictions)
        summary["perplexity"] |= {"base": values["base_perplexity"], "+".join(run.active): values["perplexity"]}
    for run in outcomes:
        rows = summary["tasks"].setdefault(run.dataset, {})
        rows.setdefault(run.row, []).append(metrics.evaluate(run.predictions))
    summary["tasks"] = {task: {row: _mean(of) for row, of in rows.items()} for task, rows in summary["tasks"].items()}
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    (folder / "report.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    made = figures.draw(folder / "figures", corpora, outcomes)
    text = _markdown(summary)
    pictures = "\n".join(f"![{path.stem}](figures/{path.name})" for path in made)
    (folder / "report.md").write_text(f"{text}\n{pictures}\n", encoding="utf-8")
    return text


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    result = {name: float(np.mean([v[name] for v in values])) for name in ("auroc", "auprc", "f1", "accuracy")}
    result["n"] = values[0]["n"]
    if len(values) > 1:
        result |= {"seeds": len(values), "auroc_sd": float(np.std([v["auroc"] for v in values], ddof=1))}
    return result


def _markdown(summary: dict) -> str:
    lines = ["# Report", ""]
    if summary["perplexity"]:
        names, values = summary["perplexity"].keys(), summary["perplexity"].values()
        lines += ["Perplexity per token on held-out patients:", "", f"| {' | '.join(names)} |"]
        lines += ["|" + "---:|" * len(names), f"| {' | '.join(f'{value:.2f}' for value in values)} |", ""]
    for task, rows in summary["tasks"].items():
        count = next(iter(rows.values()))["n"]
        lines += [f"**{task}**, {count:,} notes of held-out patients:", ""]
        lines += ["| row | AUROC | AUPRC | F1 | accuracy |", "|---|---:|---:|---:|---:|"]
        for row, v in rows.items():
            spread = f" ± {v['auroc_sd']:.3f} ({v['seeds']} seeds)" if "seeds" in v else ""
            cells = [f"{v['auroc']:.3f}{spread}", f"{v['auprc']:.3f}", f"{v['f1']:.3f}", f"{v['accuracy']:.3f}"]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    if "seconds" in summary:
        lines += [f"The whole took {summary['seconds']:.0f} seconds.", ""]
    return "\n".join(lines)
