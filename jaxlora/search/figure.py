"""The figure of a search: parallel coordinates, an axis a setting and the score at the right, a line a trial."""

import math
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from jaxlora.eval.figures import save
from jaxlora.search.record import LESS_IS_BETTER, Trial, best_of, measured, text, title
from jaxlora.search.space import Dimension

_COLOURS = colormaps["viridis_r"].with_extremes(bad="#bbbbbb")
_BEST = "#D55E00"
_DIVERGED = -0.09  # below the axis of scores
_HALO = [patheffects.withStroke(linewidth=3, foreground="white")]


def draw(path: epath.Path, measure: str, space: Sequence[Dimension], trials: Sequence[Trial]) -> epath.Path:
    """Draws the trials, the better ones darker and higher at the right, the best in orange; returns the path.

    Args:
      measure: what the scores are of. trials: one of them is complete.
    """
    figure = Figure(figsize=(max(6.0, 1.9 * (len(space) + 1)), 4.8), layout="constrained")
    axes = figure.subplots()
    ranked = sorted(trials, key=lambda trial: -math.inf if trial.score is None else trial.score)
    scores = [trial.score for trial in ranked if trial.score is not None]
    scale = Normalize(scores[0], scores[-1]) if scores[-1] > scores[0] else Normalize(scores[0] - 1, scores[0])
    heights = [_heights(dimension, ranked) for dimension in space]
    best = best_of(trials)
    for number, trial in enumerate(ranked):
        end = _DIVERGED if trial.score is None else float(scale(trial.score))
        points = [*(of_axis[number] for of_axis in heights), end]
        if trial is best:
            style = {"edgecolor": _BEST, "linewidth": 2.8, "zorder": 3}
        elif trial.score is None:
            style = {"edgecolor": "#999999", "linewidth": 1.0, "linestyle": (0, (3, 2))}
        else:
            style = {"edgecolor": _COLOURS(0.1 + 0.9 * float(scale(trial.score))), "linewidth": 1.5, "alpha": 0.85}
        axes.add_patch(PathPatch(_curve(points), facecolor="none", **style))
    for place, dimension in enumerate(space):
        for value in dimension.values:
            band = np.asarray([-0.3, 0.3]) / len(dimension.values) + dimension.share(value)
            axes.plot([place, place], band, color="#dddddd", linewidth=7, solid_capstyle="butt", zorder=0)
        _axis(axes, place, title(dimension.field), [(dimension.share(v), text(v)) for v in _ticks(dimension)])
    sign = -1 if measure in LESS_IS_BETTER else 1
    ticks = [value for value in MaxNLocator(5).tick_values(scale.vmin, scale.vmax) if scale.vmin <= value <= scale.vmax]
    labelled, lowest = [(float(scale(value)), f"{sign * value:.3g}") for value in ticks], 0.0
    if len(scores) < len(trials):
        labelled.append((_DIVERGED, "diverged"))
        lowest = _DIVERGED
    _axis(axes, len(space), f"validation {measure}", labelled, "left")
    axes.set(xlim=(-0.45, len(space) + 0.45), ylim=(lowest - 0.05, 1.12))
    axes.set_axis_off()
    told = f"{len(trials)} trials; the best, {best.name} (orange): validation {measure} {measured(best, measure):.4f}"
    axes.set_title(told, loc="left", fontsize=10)
    return save(figure, path)


def _heights(dimension: Dimension, trials: Sequence[Trial]) -> np.ndarray:
    """Returns where the trials cross an axis, 0 to 1; those of one value are spread over the middle of its place, in
    the order they are given in."""
    shares = np.asarray([dimension.share(trial.settings[dimension.field]) for trial in trials])
    if not dimension.values:
        return shares
    for share in np.unique(shares):
        same = np.flatnonzero(shares == share)
        if len(same) > 1:
            shares[same] += np.linspace(-0.25, 0.25, len(same)) / len(dimension.values)
    return shares


def _curve(points: Sequence[float]) -> Path:
    """Returns the curve through a height on every axis, level where it crosses one."""
    vertices, codes = [(0, points[0])], [Path.MOVETO]
    for place, (before, after) in enumerate(zip(points[:-1], points[1:], strict=True)):
        vertices += [(place + 0.4, before), (place + 0.6, after), (place + 1, after)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _axis(axes: Axes, place: int, name: str, ticks: Sequence[tuple[float, str]], side: str = "right") -> None:
    """Draws an axis with its ticks, (height, label); the labels end at it, or with `side` "left" begin there."""
    axes.plot([place, place], [0, 1], color="#333333", linewidth=1.2, zorder=4)
    axes.text(place, 1.05, name, ha="center", va="bottom", fontsize=9, fontweight="bold", zorder=5)
    shift = -0.04 if side == "right" else 0.04
    for height, label in ticks:
        axes.plot([place - 0.015, place + 0.015], [height, height], color="#333333", linewidth=1.2, zorder=4)
        shown = axes.text(place + shift, height, label, ha=side, va="center", fontsize=8, zorder=5)
        shown.set_path_effects(_HALO)


def _ticks(dimension: Dimension) -> Sequence:
    """Returns what is written at an axis: every value, or the ends of a range and round numbers between."""
    if dimension.values:
        return dimension.values
    if dimension.log:
        exponents = range(math.ceil(math.log10(dimension.low)), math.floor(math.log10(dimension.high)) + 1)
        between = [10.0**exponent for exponent in exponents]
    else:
        between = MaxNLocator(4).tick_values(dimension.low, dimension.high).tolist()
    inside = [value for value in between if 0.08 < dimension.share(value) < 0.92]
    return [dimension.low, *inside, dimension.high]
