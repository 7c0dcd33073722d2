"""The figures of calibration, utility and subgroups: reliability, decision curve and forest."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.special import expit
from scipy.stats import binomtest

from jaxlora.eval import calibration, utility
from jaxlora.eval.figures import COLOURS, save
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.subgroups import Group

_FRAME = "#cccccc"
_ONE = COLOURS[5]

Rows = Mapping[str, Sequence[Predictions]]  # by title, the predictions of its runs, which are drawn together


def reliability(path: Path, task: str, rows: Rows) -> Path:
    """Draws a panel for each row: the share of positives against the probability, with Wilson's interval of each bin,
    and below it how many notes have which probability.

    The curves of several runs of a row are of their notes together, the intervals of as many notes as one run has.
    """
    columns = min(len(rows), 2)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.4 * columns, 4.3 * lines), layout="constrained")
    grid = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[3, 1] * lines)
    of_top = False
    for number, (row, runs) in enumerate(rows.items()):
        of_top = runs[0].kind == "multiclass"
        truth, chances = (np.concatenate(parts) for parts in zip(*map(calibration.pooled, runs), strict=True))
        upper, lower = grid[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        _curve(upper, truth, chances, len(runs))
        upper.set_title(_wrapped(row), loc="left", fontsize=9)
        edges = np.linspace(0, 1, 2 * calibration.BINS + 1)
        counts = np.histogram(chances, edges)[0]
        lower.bar(edges[:-1], counts / counts.sum(), width=0.05, align="edge", color="#56B4E9", edgecolor="white")
        lower.set(xlim=(-0.02, 1.02))
        upper.tick_params(labelbottom=False)
        lower.set_xlabel("probability of the likeliest class" if of_top else "probability", fontsize=9)
        lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if number % columns == 0:
            upper.set_ylabel("share in which it is right" if of_top else "share of positives", fontsize=9)
            lower.set_ylabel("of the notes", fontsize=9)
        for axes in (upper, lower):
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    for spare in grid[2 * lines - 2 :, len(rows) - columns * (lines - 1) :].flat:
        spare.set_axis_off()
    figure.suptitle(f"{_spaced(task)}: reliability", x=0.01, ha="left", fontsize=11)
    return save(figure, path)


def _curve(axes, truth: np.ndarray, chances: np.ndarray, runs: int) -> None:
    curve = calibration.reliability(truth, chances)
    axes.plot([0, 1], [0, 1], color=_FRAME, linewidth=1, linestyle="--")
    counts = -(-curve.counts // runs)
    positives = np.rint(curve.observed * counts).astype(int)
    ends = [
        binomtest(int(of), int(count)).proportion_ci(method="wilson")
        for of, count in zip(positives, counts, strict=True)
    ]
    axes.vlines(curve.predicted, [e.low for e in ends], [e.high for e in ends], color=_ONE, linewidth=1.2, alpha=0.5)
    axes.plot(curve.predicted, curve.observed, color=_ONE, linewidth=1.2, marker="o", markersize=4)
    axes.text(0.04, 0.95, f"ECE {calibration.ece(curve):.3f}", transform=axes.transAxes, va="top", fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def decision(path: Path, task: str, rows: Rows) -> Path:
    """Draws the net benefit of each row of a binary task over the thresholds, of acting on all notes and on none."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    top = 0.0
    axes.axhline(0, color=COLOURS[7], linewidth=1, linestyle=":", label="act on none")
    for (row, runs), colour, style in zip(rows.items(), cycle(COLOURS[1:]), cycle(("-", "-", "--")), strict=False):
        truth, odds = (np.concatenate(parts) for parts in zip(*map(calibration.columns, runs), strict=True))
        curve = utility.decision_curve(truth[:, 0], expit(odds[:, 0]))
        top = max(top, curve.model.max(), curve.everyone.max())
        if len(axes.lines) == 1:
            axes.plot(curve.thresholds, curve.everyone, color=COLOURS[0], linewidth=1.2, label="act on all")
        axes.plot(curve.thresholds, curve.model, color=colour, linewidth=1.8, linestyle=style, label=row)
    axes.set(xlim=(0, curve.thresholds[-1]), ylim=(-0.3 * top, 1.08 * top))
    axes.set(xlabel="threshold: the probability at which one acts", ylabel="net benefit per note")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"{_spaced(task)}: decision curve", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False, ncols=2)
    return save(figure, path)


def forest(path: Path, task: str, groups: Sequence[Group], whole: float) -> Path:
    """Draws the AUROC of every group that is shown, with its interval, beside that of all notes."""
    attributes = list(dict.fromkeys(group.attribute for group in groups))
    height = 1.2 + 0.27 * (len(groups) + 1.3 * len(attributes))
    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.subplots()
    axes.axvline(whole, color=_ONE, linewidth=1, linestyle="--")
    places, labels, at = [], [], 0.0
    for attribute in attributes:
        places, labels, at = [*places, at], [*labels, _spaced(attribute)], at + 1
        for group in (group for group in groups if group.attribute == attribute):
            if group.shown:
                axes.hlines(at, group.low, group.high, color=_ONE, linewidth=1.6)
                axes.plot(group.auroc, at, marker="s", markersize=5, color=_ONE)
            area = f"{group.auroc:.3f}" if group.shown and np.isfinite(group.auroc) else "–"
            said = f"{area}  n = {group.patients:,}" if group.shown else "not shown"
            axes.text(1.02, at, said, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
            places, labels, at = [*places, at], [*labels, f"   {group.name}"], at + 1
        at += 0.3
    axes.set_yticks(places, labels, fontsize=8, ha="left")
    axes.tick_params(axis="y", length=0, pad=5.4 * max(map(len, labels)))
    for label, tick in zip(labels, axes.get_yticklabels(), strict=True):
        tick.set_fontweight("normal" if label.startswith(" ") else "bold")
    axes.set(ylim=(at, -0.7), xlabel=f"AUROC; the dashed line is all notes, {whole:.3f}")
    axes.set_title(f"{_spaced(task)}: subgroups", loc="left", x=-0.35)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return save(figure, path)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _wrapped(title: str) -> str:
    """Returns a title in two lines where it is too long for a panel."""
    if len(title) <= 34:
        return title
    cut = title.rfind(" ", 0, 34)
    return f"{title[:cut]}\n{title[cut + 1 :]}"
