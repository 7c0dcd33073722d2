"""Subgroups: how well a task goes for each group of patients, without telling of too few of them.

A group of fewer than `LEAST` patients is not shown, nor one all of whose notes have the same outcome, which would tell
that outcome, nor one from which, with the total, a hidden one could be reckoned back. The patients of whom the group is
not known are a group of their own, being part of the total.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxlora.eval import calibration, metrics, uncertainty
from jaxlora.eval.predictions import Predictions

LEAST = 20  # patients
UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of one attribute and how its task goes.

    Attributes:
      shown: whether the numbers are there; where not, they are None.
      patients, notes: how many. positives: patients with a positive note, of a binary task; None where hidden, or where
        the task is another.
      auroc: the task's own (macro over labels), with the ends of its interval, `low` and `high`; NaN without one.
      slope: of the calibration; the median over columns.
    """

    attribute: str
    name: str
    shown: bool
    patients: int | None = None
    notes: int | None = None
    positives: int | None = None
    auroc: float | None = None
    low: float | None = None
    high: float | None = None
    slope: float | None = None


def evaluate(runs: Sequence[Predictions], least: int = LEAST, resamples: int = 2000) -> list[Group]:
    """Returns the groups of every attribute of a task of whole notes, those that are not shown too.

    Args:
      runs: of one row with several seeds, or one run, with `groups`; values are means over them, and intervals those of
        such a mean over the patients of the group.
      least: the fewest patients of a group that is shown, and the fewest positive or negative ones that are counted.
      resamples: of the patients, for the interval of a group's AUROC.
    """
    return [group for attribute in runs[0].groups for group in _of_attribute(runs, attribute, least, resamples)]


def gaps(groups: Sequence[Group], whole: float) -> dict[str, float]:
    """Returns by attribute how far the AUROC of its worst group lies below `whole`, that of all notes; attributes with
    fewer than two groups that have one are left out."""
    found: dict[str, list[float]] = {}
    for group in groups:
        if group.auroc is not None and np.isfinite(group.auroc):
            found.setdefault(group.attribute, []).append(group.auroc)
    return {attribute: whole - min(values) for attribute, values in found.items() if len(values) > 1}


def hidden(counts: np.ndarray, least: int, known: np.ndarray | None = None) -> np.ndarray:
    """Returns which cells of a table are not to be shown, bool `[cells]`, where its totals are known.

    Those with a count below `least`; and then the smallest of the others, until there are two hidden cells and none of
    their sums is below `least` either, for a sum can be reckoned from the total.

    Args:
      counts: `[cells, kinds]`, what is counted in each. known: bool `[cells]`, cells that are hidden already.
    """
    found = (counts < least).any(axis=1)
    if known is not None:
        found = found | known
    while found.any() and not found.all() and (found.sum() < 2 or (counts[found].sum(axis=0) < least).any()):
        smallest = np.where(found, np.iinfo(np.int64).max, counts.min(axis=1)).argmin()
        found[smallest] = True
    return found


def subset(predictions: Predictions, chosen: np.ndarray) -> Predictions:
    """Returns the predictions of some notes of a task of whole notes; `chosen` is bool or numbers, `[notes]`."""
    groups = {attribute: (names, codes[chosen]) for attribute, (names, codes) in predictions.groups.items()}
    fields = ("ids", "patients", "labels", "logits")
    return dataclasses.replace(
        predictions, **{name: getattr(predictions, name)[chosen] for name in fields}, groups=groups
    )


def _of_attribute(runs: Sequence[Predictions], attribute: str, least: int, resamples: int) -> list[Group]:
    names, codes = runs[0].groups[attribute]
    present = [(name, code) for code, name in [*enumerate(names), (-1, UNKNOWN)] if (codes == code).any()]
    parts = [[subset(run, run.groups[attribute][1] == code) for run in runs] for _, code in present]
    patients = np.asarray([len(np.unique(part.patients)) for part, *_ in parts])
    alike = np.asarray([not len(metrics.scorable(metrics.one_vs_rest(part)[0])) for part, *_ in parts])
    out = hidden(patients[:, None], least, alike)
    uncounted = np.ones(len(parts), bool)
    if runs[0].kind == "binary":
        positives = np.asarray([len(np.unique(part.patients[part.labels == 1])) for part, *_ in parts])
        uncounted = hidden(np.stack([positives, patients - positives], axis=1), least, out)
    result = []
    for number, ((name, _), of_runs) in enumerate(zip(present, parts, strict=True)):
        if out[number]:
            result.append(Group(attribute, name, shown=False))
            continue
        found = uncertainty.over_seeds(of_runs, "auroc", resamples)
        result.append(
            Group(
                attribute,
                name,
                shown=True,
                patients=int(patients[number]),
                notes=len(of_runs[0].ids),
                positives=None if uncounted[number] else int(positives[number]),
                auroc=found.mean,
                low=found.low,
                high=found.high,
                slope=float(np.mean([calibration.median_slope(part) for part in of_runs])),
            )
        )
    return result
