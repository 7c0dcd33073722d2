"""Every figure of one file of predictions, as `metrics-SPLIT.json` has them."""

from jaxlora.data.examples import OUTCOMES
from jaxlora.eval import calibration, metrics, scaling, thresholds
from jaxlora.eval.predictions import Predictions


def evaluate(predictions: Predictions, validation: Predictions | None = None) -> dict[str, float]:
    """Returns `metrics.evaluate`'s figures, and of a task of whole notes those of `calibration.evaluate`.

    Args:
      validation: of the same run; gives a task of whole notes the figures after scaling by it too, and those at the
        thresholds that are best on it.
    """
    values = metrics.evaluate(predictions)
    if predictions.kind in OUTCOMES:
        values |= calibration.evaluate(predictions)
        if validation is not None:
            values |= scaling.evaluate(predictions, validation) | thresholds.evaluate(validation, predictions)
    return values
