"""Rows against each other, over the same draws of the same patients: what a table argues with."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlora.eval import metrics, predictions, uncertainty
from jaxlora.eval.delong import compare_delong
from jaxlora.eval.uncertainty import Comparison, Sampled
from jaxlora.reproduce import replicates
from jaxlora.reproduce.collect import samples_of
from jaxlora.reproduce.results import AVERAGE, Column, Difference, Pair
from jaxlora.reproduce.runs import Job


def compared(
    pairs: Sequence[Pair], jobs: Mapping[str, Sequence[Job]], columns: Sequence[Column], resamples: int
) -> tuple[Pair, ...]:
    """Returns the pairs of which both rows were run, with their differences in every column that has intervals.

    Args:
      jobs: the finished runs of each row, by its name; of two rows that are compared of the same seeds, but for
        TF-IDF, which has one run.

    Raises:
      UserError: two runs were evaluated on other notes.
    """
    named = {name for pair in pairs for name in (pair.one, pair.other) if jobs.get(name)}
    samples = {name: samples_of(jobs[name], columns, resamples) for name in named}
    found = []
    for pair in pairs:
        if not {pair.one, pair.other} <= named:
            continue
        differences = []
        for column in (*columns, AVERAGE):
            if column.name in samples[pair.one] and column.name in samples[pair.other]:
                rows = [uncertainty.average(samples[name][column.name]) for name in (pair.one, pair.other)]
                delong = None
                if column is not AVERAGE:  # whose tasks have been before
                    delong = _delong(*(_first(jobs[name], column) for name in (pair.one, pair.other)), resamples)
                differences.append(_difference(column, *rows, delong))
        if differences:
            found.append(dataclasses.replace(pair, differences=tuple(differences)))
    return _corrected(found)


def _difference(column: Column, one: Sampled, other: Sampled, delong: float | None) -> Difference:
    """Returns one less the other in points, or, of a perplexity, the one over the other."""
    if column.unit == "percent":
        difference, low, high, p = uncertainty.difference(one, other)
        return Difference(column.name, 100 * difference, 100 * low, 100 * high, p, delong=delong)
    of: Comparison = uncertainty.difference(*map(_logarithm, (one, other)))
    return Difference(column.name, *(float(np.exp(end)) for end in of[:3]), of.p)


def _logarithm(of: Sampled) -> Sampled:
    return of._replace(value=np.log(of.value), draws=np.log(of.draws))


def _first(jobs: Sequence[Job], column: Column) -> Job:
    """Returns the run of the first seed in a column; a run of Table 2 is of all columns."""
    return next(job for job in jobs if job.task in ("", column.name))


def _delong(one: Job, other: Job, resamples: int) -> float | None:
    """Returns DeLong's p of two runs of a binary task; None of others.

    Raises:
      UserError: they were evaluated on other notes.
    """
    kept = replicates.of_same_notes([one.folder, other.folder], one.config.mode, resamples)
    if kept[0].kind != "binary":
        return None
    ranked = [predictions.load(job.folder / "predictions-test.npz") for job in (one, other)]
    orders = [np.argsort(p.ids, kind="stable") for p in ranked]
    scores = [metrics.one_vs_rest(p)[1][order, 0] for p, order in zip(ranked, orders, strict=True)]
    return compare_delong(ranked[0].labels[orders[0]], *scores)[1]


def _corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Returns the pairs with the p of every difference of the table after Holm, and DeLong's, a family of their own."""
    every = [of for pair in pairs for of in pair.differences]
    after = iter(uncertainty.holm([of.p for of in every]))
    after_delong = iter(uncertainty.holm([of.delong for of in every if of.delong is not None]))

    def corrected(of: Difference) -> Difference:
        delong = None if of.delong is None else next(after_delong)
        return dataclasses.replace(of, holm=next(after), delong_holm=delong)

    return tuple(dataclasses.replace(pair, differences=tuple(map(corrected, pair.differences))) for pair in pairs)
