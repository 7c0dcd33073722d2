"""Found and annotated entities: how many agree, strictly and leniently, note by note."""

from collections import defaultdict

import numpy as np

from jaxlora.eval.predictions import Predictions
from jaxlora.eval.tallies import f1

COUNTS = ("both", "found", "truth", "found_overlapping", "truth_overlapping")


def counts(predictions: Predictions) -> np.ndarray:
    """Returns int64 `[types, 5, notes]`, in the order of `COUNTS`: the entities found and annotated alike (`both`, in
    type, first and last character), all found, all annotated, and of the found and of the annotated those that share a
    character with one of the same type on the other side.

    What is annotated in a part that was cut off, or under another entity, which BIO cannot tell, counts as missed.
    """
    p = predictions
    result = np.zeros((len(types(p)), len(COUNTS), len(p.ids)), np.int64)
    found, truth = (set(map(tuple, rows.tolist())) for rows in (p.found, p.truth))
    sides = found & truth, found, truth, _overlapping(found, truth), _overlapping(truth, found)
    for column, rows in enumerate(sides):
        for note, _, _, kind in rows:
            result[kind, column, note] += 1
    return result


def types(predictions: Predictions) -> list[str]:
    """Returns the names of the types of entities."""
    return [name.removeprefix("B-") for name in predictions.names[1::2]]


def lenient_f1(counts: np.ndarray) -> np.ndarray:
    """Returns the harmonic mean of the overlapping shares of the found and of the annotated entities, where one entity
    may overlap several; 0 where only one side has any, and NaN where neither has.

    Args:
      counts: `[5, ...]`, in the order of `COUNTS`.
    """
    _, found, truth, of_found, of_truth = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.nan_to_num(of_found / found), np.nan_to_num(of_truth / truth)
        mean = np.nan_to_num(2 * precision * recall / (precision + recall))
    return np.where(found + truth > 0, mean, np.nan)


def of_entities(predictions: Predictions) -> dict[str, float]:
    """Returns f1, precision and recall over all entities of all notes, f1_TYPE of each type, f1_lenient, accuracy (of
    the tags), entities (annotated) and n (notes).

    An entity counts where type, first and last character are exactly the annotator's; leniently where it overlaps one
    of the same type. A type that is neither annotated nor predicted has no F1.
    """
    p = predictions
    of_types = counts(p).sum(axis=2)
    total = of_types.sum(axis=0)
    both, found, truth = total[:3]
    result = {
        "f1": float(f1(both, found, truth)),
        "precision": float(both / found) if found else 0.0,
        "recall": float(both / truth) if truth else 0.0,
        "f1_lenient": float(lenient_f1(total)),
    }
    result |= {f"f1_{name}": float(f1(*row[:3])) for name, row in zip(types(p), of_types, strict=True)}
    accuracy = float((p.labels == p.chosen).mean()) if len(p.labels) else float("nan")
    return result | {"accuracy": accuracy, "entities": int(truth), "n": len(p.ids)}


def _overlapping(rows: set[tuple], others: set[tuple]) -> set[tuple]:
    """Returns the entities of `rows` that share a character with one of `others` of the same note and type."""
    by_place = defaultdict(list)
    for note, start, end, kind in others:
        by_place[note, kind].append((start, end))
    return {
        (note, start, end, kind)
        for note, start, end, kind in rows
        if any(start < last and first < end for first, last in by_place[note, kind])
    }
