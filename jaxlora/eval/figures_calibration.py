"""The figures of calibration, utility and subgroups: reliability, decision curve and forest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jaxlora.eval import calibration
from jaxlora.eval.curves import HISTOGRAM, Curves, Risks, probabilities
from jaxlora.eval.figures import COLOURS, save, style_of
from jaxlora.eval.subgroups import Group

_FRAME, _INK, _GIVEN, _ONE = "#cccccc", COLOURS[7], COLOURS[1], COLOURS[5]


def reliability(path: Path, task: str, rows: Mapping[str, Curves]) -> Path:
    """Draws a panel for each row: the share of positives against the probability, with Wilson's interval of each bin,
    and below it how many cases have which probability; of the scores as given and, where there are validation notes,
    after Platt scaling on them."""
    columns = min(len(rows), 2)
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3.4 * columns, 4.3 * lines), layout="constrained")
    grid = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[3, 1] * lines)
    drawn = [risks for of in rows.values() for risks in (of.given, of.scaled) if risks]
    end = max(float(values.max()) for of in drawn for values in (of.high, of.reliability.predicted))
    ends = -0.02 * end, min(1.02, 1.25 * end)
    of_top = next(iter(rows.values())).kind == "multiclass"
    for number, (row, of) in enumerate(rows.items()):
        upper, lower = grid[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        upper.plot([0, 1], [0, 1], color=_FRAME, linewidth=1, linestyle="--")
        _curve(upper, lower, of.given, "as given", _GIVEN)
        if of.scaled:
            _curve(upper, lower, of.scaled, "Platt-scaled", _ONE)
        upper.legend(fontsize=8, frameon=False, loc="upper left", handlelength=1.2, borderaxespad=0.2)
        upper.set(xlim=ends, ylim=ends)
        upper.set_title(_wrapped(row), loc="left", fontsize=9)
        lower.set(xlim=ends)
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
    figure.suptitle(f"{task}: reliability", x=0.01, ha="left", fontsize=11)
    return save(figure, path)


def _curve(upper, lower, risks: Risks, name: str, colour: str) -> None:
    curve = risks.reliability
    upper.vlines(curve.predicted, risks.low, risks.high, color=colour, linewidth=1.2, alpha=0.5)
    label = f"{name}, ECE {calibration.ece(curve):.3f}"
    upper.plot(curve.predicted, curve.observed, color=colour, linewidth=1.2, marker="o", markersize=4, label=label)
    lower.stairs(risks.histogram, HISTOGRAM, color=colour, fill=True, alpha=0.4)
    lower.stairs(risks.histogram, HISTOGRAM, color=colour)


def decision(path: Path, task: str, rows: Mapping[str, Curves]) -> Path:
    """Draws the net benefit of each row of a binary task over the thresholds, of acting on all notes and on none."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    found, how = probabilities(rows)
    curves = {row: of.decision for row, of in found.items()}
    first = next(iter(curves.values()))
    axes.axhline(0, color=_INK, linewidth=1, linestyle=":", label="act on none")
    axes.plot(first.thresholds, first.everyone, color=_INK, linewidth=1, linestyle="-.", label="act on all")
    for number, (row, curve) in enumerate(curves.items()):
        axes.plot(curve.thresholds, curve.model, **style_of(number), linewidth=1.8, label=row)
    top = max(of.max() for curve in curves.values() for of in (curve.model, curve.everyone))
    axes.set(xlim=(0, first.thresholds[-1]), ylim=(-0.3 * top, 1.08 * top))
    axes.set(xlabel="threshold: the probability at which one acts", ylabel="net benefit per note")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"{task}: decision curve\n{how}", loc="left", fontsize=10)
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
        places, labels, at = [*places, at], [*labels, attribute.replace("_", " ")], at + 1
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
    figure.suptitle(f"{task}: subgroups", x=0.01, ha="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return save(figure, path)


def _wrapped(title: str) -> str:
    """Returns a title in two lines where it is too long for a panel."""
    if len(title) <= 34:
        return title
    cut = title.rfind(" ", 0, 34)
    return f"{title[:cut]}\n{title[cut + 1 :]}"
