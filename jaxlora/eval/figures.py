"""The figures of a report: ROC curves by row, and loss curves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxlora import files
from jaxlora.eval.curves import GRID, Curves, Log, smoothed, traced

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#999999", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#0072B2", "#CC79A7", "#000000")


def roc(path: Path, task: str, rows: Mapping[str, Curves]) -> Path:
    """Draws the ROC curve of every row that has one; returns the path."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, linestyle="--")
    for number, (row, of) in enumerate(rows.items()):
        if of.ranked:
            label = f"{of.ranked.areas.mean():.3f}  {row}"
            axes.plot(GRID, of.ranked.sensitivity, **style_of(number), linewidth=1.8, label=label)
    first = next(iter(rows.values()))
    average = "" if first.kind == "binary" else ", mean over labels"
    axes.set(xlabel="1 − specificity", ylabel=f"sensitivity{average}", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set_title(f"{task}: {first.notes:,} held-out notes", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title="AUROC", loc="lower right", fontsize=8, frameon=False, alignment="left")
    return save(figure, path)


def losses(path: Path, panels: Mapping[str, Mapping[str, Sequence[Log]]]) -> Path | None:
    """Draws the training loss of each row, the mean over its runs, in a panel for each dataset; returns the path, or
    None where no run has one.

    Args:
      panels: by title the rows by theirs, each the logs of its runs.
    """
    traces = {}
    for title, rows in panels.items():
        found = {row: traced(logs, "loss") for row, logs in rows.items()}
        traces[title] = {row: (steps, values) for row, (steps, values) in found.items() if len(steps)}
    traces = {title: rows for title, rows in traces.items() if rows}
    if not traces:
        return None
    columns = min(3, len(traces))
    lines = -(-len(traces) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.8 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, rows) in zip(grid, traces.items(), strict=False):
        for number, (row, (steps, values)) in enumerate(rows.items()):
            axes.plot(steps, smoothed(values), **style_of(number), linewidth=1.6, label=row)
        axes.set_title(title, loc="left")
        axes.set(xlabel="update", ylabel="training loss, smoothed")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    for spare in grid[len(traces) :]:
        spare.set_axis_off()
    return save(figure, path)


def style_of(number: int) -> dict[str, str]:
    """Returns colour and line of a row by its number: beyond the colours they begin anew, with other lines."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3]}


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all; returns its path."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    files.write(path, picture.getvalue())
    return path
