"""Thresholds chosen on the validation split, and what they give on another."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_curve

from jaxlora.data.examples import OUTCOMES
from jaxlora.errors import UserError
from jaxlora.eval import metrics
from jaxlora.eval.predictions import Predictions
from jaxlora.eval.tallies import f1, mean, tallies
from jaxlora.eval.weights import Weights, unit

RATES = ("f1_at", "sensitivity", "specificity", "ppv", "npv", "f1_micro_at")
RULES = ("f1", "macro_f1", "youden")


def choose(validation: Predictions, rule: str = "f1") -> np.ndarray:
    """Returns the threshold of each label, `[labels]`, from which on `metrics.one_vs_rest`'s scores mean yes.

    Of several best ones it is the highest. A label without both classes in the split has that of one half.

    Args:
      rule: what is largest at the threshold: "f1", of the label; "macro_f1", the mean of the F1 of the label and of its
        absence, as in the published notebook (docs/paper.md); "youden", sensitivity + specificity.

    Raises:
      UserError: no such rule, or predictions without labels of whole notes.
    """
    if rule not in RULES:
        raise UserError(f"thresholds: no rule {rule}; choose one of {', '.join(RULES)}")
    truth, scores = _of_notes(validation)
    result = np.full(truth.shape[1], 0.0 if validation.kind == "multilabel" else 0.5)
    for label in metrics.scorable(truth):
        false, true, thresholds = roc_curve(truth[:, label], scores[:, label], drop_intermediate=False)
        result[label] = thresholds[1:][_score(rule, true[1:], false[1:], truth[:, label]).argmax()]
    return result


def _score(rule: str, sensitivity: np.ndarray, false: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns what a rule makes largest, `[thresholds]`; false: the share of the negatives above each."""
    if rule == "youden":
        return sensitivity - false
    positives, negatives = truth.sum(), len(truth) - truth.sum()
    above, below = sensitivity * positives, (1 - sensitivity) * positives
    wrong, right = false * negatives, (1 - false) * negatives
    f1 = 2 * above / (above + wrong + positives)
    return f1 if rule == "f1" else (f1 + 2 * right / (right + below + negatives)) / 2


def evaluate(validation: Predictions, test: Predictions, rule: str = "f1") -> dict[str, float]:
    """Returns `RATES` of `test` at thresholds chosen on `validation`, see `at`.

    Raises:
      UserError: what `choose` raises, or predictions of other labels.
    """
    if (validation.kind, validation.names) != (test.kind, test.names):
        raise UserError("thresholds: the two predictions have other labels; evaluate one run on both splits")
    values = at(test, choose(validation, rule))(unit(len(test.ids)))
    return {name: float(value[0]) for name, value in values.items()}


def at(predictions: Predictions, thresholds: np.ndarray) -> Callable[[Weights], dict[str, np.ndarray]]:
    """Returns the function of the notes' weights that gives `RATES`, each `[replicates]`: f1_at, sensitivity,
    specificity, ppv and npv are means over the labels with both classes (ppv and npv over those of them where any note,
    or not every one, is above its threshold), f1_micro_at is over all labels.

    Args:
      thresholds: `[labels]`.
    """
    truth, scores = _of_notes(predictions)
    of = tallies(truth, scores >= thresholds)

    def values(weights: Weights) -> dict[str, np.ndarray]:
        both, chosen, true, total = of(weights)
        neither = total - chosen - true + both
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = [f1(both, chosen, true), both / true, neither / (total - true)]
            rates += [both / chosen, neither / (total - chosen)]
        unscored = (true == 0) | (true == total)
        means = [mean(np.where(unscored, np.nan, rate)) for rate in rates]
        micro = f1(*(x.sum(axis=0) for x in (both, chosen, true)))
        return dict(zip(RATES, [*means, np.nan_to_num(micro)], strict=True))

    return values


def _of_notes(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    if predictions.kind not in OUTCOMES:
        raise UserError(f"thresholds: {predictions.kind} predictions have none; take a task of whole notes")
    return metrics.one_vs_rest(predictions)
