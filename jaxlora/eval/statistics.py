"""The metrics of saved predictions as functions of the notes' weights: many replicates at once.

With every weight one they are `metrics.evaluate`'s. A label, class or pair of classes that has no notes of both kinds
in a replicate is left out of that replicate's average.
"""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
from scipy.sparse import csr_array

from jaxlora.errors import UserError
from jaxlora.eval import entities, metrics
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.ranking import Ranking
from jaxlora.eval.tallies import f1, mean, tallies
from jaxlora.eval.thresholds import RATES, at
from jaxlora.eval.weights import Weights

# Weights to values by name, each `[replicates]`.
Statistic = Callable[[Weights], dict[str, np.ndarray]]


def statistic(predictions: Predictions, names: Iterable[str], thresholds: np.ndarray | None = None) -> Statistic:
    """Returns the function of weights that gives the named metrics.

    Args:
      names: of `metrics.evaluate`, but for counts, token accuracy and the batch-mean perplexity; also brier and
        log_loss, and with `thresholds` those of `thresholds.evaluate`.
      thresholds: of `thresholds.choose`, `[labels]`.

    Raises:
      UserError: predictions of this kind have no such metric.
    """
    names, parts = set(names), []
    known = _families(predictions, thresholds)
    for family, make in known.items():
        if names.intersection(family):
            parts.append(make())
    missing = sorted(names - set().union(*known))
    if missing:
        listed = ", ".join(sorted(set().union(*known)))
        raise UserError(f"metrics: {predictions.kind} predictions have no {missing[0]} to resample; they have {listed}")

    def values(weights: Weights) -> dict[str, np.ndarray]:
        every = {}
        for part in parts:
            every |= part(weights)
        return {name: every[name] for name in names}

    return values


def _families(p: Predictions, thresholds: np.ndarray | None) -> dict[tuple[str, ...], Callable[[], Statistic]]:
    """Returns, by the names of metrics that are computed together, what makes their statistic."""
    if p.kind == "lm":
        sums = {"perplexity": (p.nll, p.tokens), "base_perplexity": (p.base_nll, p.tokens)}
        return {tuple(sums): lambda: _of_ratios(sums, np.exp)}
    if p.kind == "span":
        return _of_answers(p)
    if p.kind == "tokens":
        names = ("f1", "precision", "recall", "f1_lenient", *(f"f1_{name}" for name in entities.types(p)))
        return {names: lambda: _of_entities(p)}
    families = {
        _strata_names(p): lambda: _ranked(p),
        ("f1", "f1_micro", "accuracy"): lambda: _of_choices(p),
        ("brier", "log_loss"): lambda: _of_probabilities(p),
    }
    if p.kind == "multiclass":
        families["auroc_ovo", "auprc_ovo"] = lambda: _one_vs_one(p)
    if p.kind != "binary":
        families["auroc_micro", "auprc_micro"] = lambda: _micro(p)
    if p.kind == "multilabel":
        families["auroc_paper", "auprc_paper"] = lambda: _ranked(p, paper=True)
    if thresholds is not None:
        families[RATES] = lambda: at(p, thresholds)
    return families


def _of_ratios(sums: dict[str, tuple[np.ndarray, np.ndarray]], after: Callable = lambda x: x) -> Statistic:
    """Sums over sums: by name the values above and below the line, `[notes]` each, and what is done with the ratio."""
    rows = csr_array(np.stack([x for pair in sums.values() for x in pair]).astype(np.float64))

    def values(weights: Weights) -> dict[str, np.ndarray]:
        above, below = weights.sums(rows).reshape(len(sums), 2, -1).swapaxes(0, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return dict(zip(sums, after(above / below), strict=True))

    return values


def _of_answers(p: Predictions) -> dict[tuple[str, ...], Callable[[], Statistic]]:
    (exact, overlap), some = p.scores.astype(np.float64).T, (p.labels == 1).astype(np.float64)
    every = np.ones_like(some)
    sums = {
        "exact": (exact, every),
        "f1": (overlap, every),
        "exact_answerable": (exact * some, some),
        "f1_answerable": (overlap * some, some),
        "none_found": (exact * (1 - some), 1 - some),
    }
    return {tuple(sums): lambda: _of_ratios(sums)}


def _of_entities(p: Predictions) -> Statistic:
    names, of_types = entities.types(p), entities.counts(p)
    rows = csr_array(of_types.reshape(-1, len(p.ids)).astype(np.float32))

    def values(weights: Weights) -> dict[str, np.ndarray]:
        each = weights.sums(rows).astype(np.float64).reshape(*of_types.shape[:2], -1)
        total = each.sum(axis=0)
        both, found, truth = total[:3]
        result = {
            "f1": f1(both, found, truth),
            "precision": both / np.maximum(found, 1),
            "recall": both / np.maximum(truth, 1),
            "f1_lenient": entities.lenient_f1(total),
        }
        return result | {f"f1_{name}": f1(*row[:3]) for name, row in zip(names, each, strict=True)}

    return values


def _strata_names(p: Predictions) -> tuple[str, ...]:
    ends = ["", *(f"_{name}" for name in metrics.STRATA)] if len(p.train_positives) else [""]
    return tuple(f"{name}{end}" for end in ends for name in ("auroc", "auprc"))


def _ranked(p: Predictions, paper: bool = False) -> Statistic:
    truth, scores = metrics.one_vs_rest(p, paper)
    columns, notes = metrics.scorable(truth), np.arange(len(truth))
    labels = [Ranking(truth[:, c], scores[:, c], notes, len(notes)) for c in columns]
    groups = {"_paper" if paper else "": columns}
    if len(p.train_positives) and not paper:
        groups |= {f"_{name}": of for name, of in metrics.strata(p.train_positives).items()}

    def values(weights: Weights) -> dict[str, np.ndarray]:
        each = _stacked(labels, weights)
        result = {}
        for end, members in groups.items():
            result[f"auroc{end}"], result[f"auprc{end}"] = mean(each[np.isin(columns, members)])
        return result

    return values


def _one_vs_one(p: Predictions) -> Statistic:
    _, scores = metrics.one_vs_rest(p)
    pairs = []
    for a, b in itertools.permutations(np.unique(p.labels), 2):
        notes = np.flatnonzero(np.isin(p.labels, (a, b)))
        pairs.append(Ranking(p.labels[notes] == a, scores[notes, a], notes, len(p.ids)))
    return lambda weights: dict(zip(("auroc_ovo", "auprc_ovo"), mean(_stacked(pairs, weights)), strict=True))


def _micro(p: Predictions) -> Statistic:
    truth, scores = metrics.one_vs_rest(p)
    notes = np.repeat(np.arange(len(truth), dtype=np.int32), truth.shape[1])
    every = [Ranking(truth.ravel(), scores.ravel(), notes, len(truth))] if len(metrics.scorable(truth)) else []
    return lambda weights: dict(zip(("auroc_micro", "auprc_micro"), mean(_stacked(every, weights)), strict=True))


def _stacked(rankings: list[Ranking], weights: Weights) -> np.ndarray:
    """Returns `[rankings, 2, replicates]`."""
    return np.stack([of(weights) for of in rankings]) if rankings else np.zeros((0, 2, weights.count))


def _of_choices(p: Predictions) -> Statistic:
    """F1 and accuracy of what is chosen: the likeliest class, or the labels above one half."""
    truth, _ = metrics.one_vs_rest(p)
    labels = metrics.chosen(p)
    if p.kind == "multilabel":
        of = tallies(truth, labels)
    else:
        of = tallies(*(np.eye(len(p.names), dtype=np.uint8)[x] for x in (p.labels, labels)))
    right = (p.labels == labels).reshape(len(labels), -1).mean(axis=1)
    accuracy = _of_ratios({"accuracy": (right, np.ones(len(right)))})

    def values(weights: Weights) -> dict[str, np.ndarray]:
        both, chosen, true, total = of(weights)
        each = f1(both, chosen, true)
        if p.kind == "multilabel":
            each[(true == 0) | (true == total)] = np.nan
        micro = f1(*(x.sum(axis=0) for x in (both, chosen, true)))
        return {"f1": mean(each), "f1_micro": np.nan_to_num(micro), **accuracy(weights)}

    return values


def _of_probabilities(p: Predictions) -> Statistic:
    """Brier score and log loss, means over notes: of a binary task of its second class, of several classes over the
    whole distribution, and of several labels a mean over them."""
    logits = p.logits.astype(np.float64)
    if p.kind == "multilabel":
        losses = np.logaddexp(0, np.where(p.labels, -logits, logits)).mean(axis=1)
        brier = ((1 / (1 + np.exp(-logits)) - p.labels) ** 2).mean(axis=1)
    else:
        truth, probabilities = np.eye(logits.shape[1])[p.labels], metrics.softmax(logits)
        losses = np.logaddexp.reduce(logits, axis=1) - (logits * truth).sum(axis=1)
        brier = ((probabilities - truth) ** 2).sum(axis=1) / (2 if p.kind == "binary" else 1)
    every = np.ones(len(losses))
    return _of_ratios({"brier": (brier, every), "log_loss": (losses, every)})
