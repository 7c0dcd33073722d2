"""The figures of an audit: the words that tell each class, and the overlap of test notes with a corpus."""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxlora.audit.contamination import LIMIT
from jaxlora.audit.grams import LENGTH
from jaxlora.audit.words import OUTCOME_WORDS
from jaxlora.eval.figures import COLOURS, save

_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#999999"
_MOST_PANELS = 6
_FEW_LINES = 6  # that leave room for their legend


def draw(folder: Path, leakage: dict[str, dict], overlaps: dict[str, dict[str, np.ndarray]]) -> list[Path]:
    """Draws `audit-words-DATASET.png` for each dataset and `audit-overlap.png`; returns their paths."""
    made = [_words(folder, name, found) for name, found in leakage.items() if any(found["top"].values())]
    return made + ([_overlap(folder / "audit-overlap.png", overlaps)] if overlaps else [])


def _words(folder: Path, name: str, found: dict) -> Path:
    labels = [label for label in found["labels"] if found["top"][label]][:_MOST_PANELS]
    figure = Figure(figsize=(min(len(labels), 3) * 3.4, -(-len(labels) // 3) * 3.2), layout="constrained")
    for number, label in enumerate(labels):
        axes = figure.add_subplot(-(-len(labels) // 3), min(len(labels), 3), number + 1)
        words, weights = zip(*found["top"][label][::-1], strict=True)
        axes.barh(words, weights, color=[_RED if word in OUTCOME_WORDS else _BLUE for word in words])
        axes.set_title(label, loc="left")
        axes.set_xlabel("weight")
        axes.spines[["top", "right"]].set_visible(False)
    area = found["scores"]["words"]["auroc"]
    told = "one class only" if np.isnan(area) else f"AUROC {area:.3f}"
    figure.suptitle(f"{name}: bag of words, {told}", x=0.01, ha="left")
    return save(figure, folder / f"audit-words-{name.replace('/', '-')}.png")


def _overlap(path: Path, overlaps: dict[str, dict[str, np.ndarray]]) -> Path:
    figure = Figure(figsize=(7.2, 3.8 * len(overlaps)), layout="constrained")
    panels = figure.subplots(len(overlaps), 1, squeeze=False)[:, 0]
    least = np.linspace(0, 100, 1001)
    for axes, (corpus, of_datasets) in zip(panels, overlaps.items(), strict=True):
        for colour, (name, overlap) in zip(itertools.cycle(COLOURS[1:]), of_datasets.items()):
            above = 100 - 100 * np.searchsorted(np.sort(100 * overlap), least) / max(len(overlap), 1)
            axes.plot(least, above, color=colour, linewidth=1.6, label=f"{name} ({len(overlap):,})")
        axes.axvline(100 * LIMIT, color=_GREY, linestyle="--", linewidth=1, zorder=1, label="contaminated above this")
        axes.set(xlim=(0, 100.5), ylim=(0, 101), ylabel="% of the test notes")
        axes.set_xlabel(f"at least this % of their {LENGTH}-word sequences are in the corpus")
        axes.set_title(f"corpus {corpus}", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        few = len(of_datasets) <= _FEW_LINES
        # "best" is the upper right where the lines leave it free.
        place = {"loc": "best"} if few else {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(title="test notes of", fontsize=8, title_fontsize=8, alignment="left", frameon=False, **place)
    return save(figure, path)
