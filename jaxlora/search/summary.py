"""What came of a search: one table, the best trial, and the figure."""

from collections.abc import Sequence

from etils import epath

from jaxlora import files
from jaxlora.search import figure
from jaxlora.search.record import Trial, best_of, measured, text, title
from jaxlora.search.space import Dimension


def write(
    workdir: str, dataset: str, method: str, measure: str, space: Sequence[Dimension], trials: Sequence[Trial]
) -> str:
    """Writes `sweep.md`, `best.json` and `figures/parallel.png`; returns what the user is told.

    Args:
      measure: what the scores are of, such as "AUROC".
      trials: one of them is complete.
    """
    best, folder = best_of(trials), epath.Path(workdir)
    command = f"jaxlora evaluate --workdir={folder / best.name}"
    shown = {trial.name: measured(trial, measure) for trial in trials}
    found = {"trial": best.name, measure: shown[best.name], "settings": best.settings, "evaluate": command}
    files.write_json(folder / "best.json", found)
    figure.draw(folder / "figures" / "parallel.png", measure, space, trials)
    ranked = sorted(trials, key=lambda trial: float("inf") if trial.score is None else -trial.score)
    lines = [
        f"# Search for {measure} on the validation notes of {dataset}",
        "",
        f"{method}, {len(trials)} trials; the test notes were not looked at.",
        "",
        f"| trial | {' | '.join(title(dimension.field) for dimension in space)} | validation {measure} |",
        "|---|" + "---:|" * (len(space) + 1),
        *(_row(trial, space, shown[trial.name], trial is best) for trial in ranked),
        "",
        f"The best of {len(trials)} is also the luckiest of them on these notes. What it is worth, the test notes say:",
        "",
        f"    {command}",
        "",
        "![settings and scores of all trials](figures/parallel.png)",
    ]
    files.write(folder / "sweep.md", "\n".join(lines) + "\n")
    settings = ", ".join(f"{field} {text(value)}" for field, value in best.settings.items())
    return f"best of {len(trials)}: {best.name}, validation {measure} {shown[best.name]:.4f} ({settings})\n{command}"


def _row(trial: Trial, space: Sequence[Dimension], value: float | None, best: bool) -> str:
    cells = [trial.name, *(text(trial.settings[dimension.field]) for dimension in space)]
    cells.append("diverged" if value is None else f"{value:.4f}")
    return "| " + " | ".join(f"**{cell}**" if best else cell for cell in cells) + " |"
