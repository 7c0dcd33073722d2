"""The figures of a report: ROC curves by row, and loss curves."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from jaxlora import files
from jaxlora.data.examples import OUTCOMES
from jaxlora.eval import metrics
from jaxlora.eval.runs import Run

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#999999", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#0072B2", "#CC79A7", "#000000")
_GRID = np.linspace(0, 1, 201)


def draw(folder: Path, corpora: Sequence[Run], outcomes: Sequence[Run]) -> list[Path]:
    """Draws `roc-TASK.png` for each task of whole notes and `loss.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    ranked = [run for run in outcomes if run.predictions.kind in OUTCOMES]
    for task in dict.fromkeys(run.dataset for run in ranked):
        made.append(
            _roc(folder / f"roc-{task.replace('/', '-')}.png", task, [run for run in outcomes if run.dataset == task])
        )
    made.append(_losses(folder / "loss.png", corpora, outcomes))
    return made


def _roc(path: Path, task: str, runs: Sequence[Run]) -> Path:
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, linestyle="--")
    rows = list(dict.fromkeys(run.row for run in runs))
    for colour, row in zip(COLOURS, rows, strict=False):
        of_row = [run for run in runs if run.row == row]
        curve = np.mean([_mean_roc(run) for run in of_row], axis=0)
        area = np.mean([metrics.evaluate(run.predictions)["auroc"] for run in of_row])
        axes.plot(_GRID, curve, color=colour, linewidth=1.8, label=f"{area:.3f}  {row}")
    average = "" if runs[0].predictions.kind == "binary" else ", mean over labels"
    axes.set(xlabel="1 − specificity", ylabel=f"sensitivity{average}", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set_title(f"{task.replace('_', ' ')}: {len(runs[0].predictions.ids)} held-out notes", loc="left")
    axes.legend(title="AUROC", loc="lower right", fontsize=8, frameon=False, alignment="left")
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def _mean_roc(run: Run) -> np.ndarray:
    """Returns the sensitivity at each 1 − specificity of the grid, averaged over the labels with both classes."""
    truth, scores = metrics.one_vs_rest(run.predictions)
    curves = []
    for column in metrics.scorable(truth):
        false, true, _ = roc_curve(truth[:, column], scores[:, column])
        curves.append(np.interp(_GRID, false, true))
    return np.mean(curves, axis=0) if curves else _GRID


def _losses(path: Path, corpora: Sequence[Run], outcomes: Sequence[Run]) -> Path:
    panels = [("notes", list(corpora))] if corpora else []
    panels += [
        (task, [r for r in outcomes if r.dataset == task]) for task in dict.fromkeys(r.dataset for r in outcomes)
    ]
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, runs) in zip(grid, panels, strict=True):
        rows = list(dict.fromkeys(run.row for run in runs))
        for run in runs:
            points = [(line["step"], line["loss"]) for line in run.log if "loss" in line]
            if not points:  # TF-IDF has no updates
                continue
            steps, losses = np.array(points).T
            colour = COLOURS[rows.index(run.row) % len(COLOURS)]
            label = run.row if run is next(r for r in runs if r.row == run.row) else None
            axes.plot(steps, _smooth(losses), color=colour, linewidth=1.6, label=label)
        axes.set_title(title.replace("_", " "), loc="left")
        axes.set(xlabel="update", ylabel="training loss, smoothed")
        if title != "notes":
            axes.legend(fontsize=6, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the running mean over a tenth of the curve."""
    width = max(1, len(values) // 10)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all; returns its path."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    files.write(path, picture.getvalue())
    return path
