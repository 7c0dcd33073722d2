"""The validation of a run that is being trained: what `fit` selects its checkpoints by."""

from collections.abc import Callable

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxlora.data.examples import OUTCOMES, Task
from jaxlora.data.loader import Batches
from jaxlora.eval import metrics
from jaxlora.eval.features import Features
from jaxlora.eval.predict import predict


def validation(
    step: Callable, batches: Batches, task: Task, mesh: Mesh, features: Features | None = None
) -> Callable[[nnx.State, Callable[[], None]], tuple[float, dict[str, float]]]:
    """Returns what `fit` calls to validate: the model's whole state to a score, larger for better, and metrics.

    Args:
      step: of `make_predict_step`.
      features: where they can be kept, they are made at the first validation and serve those after it.
    """

    def validate(state: nnx.State, check: Callable[[], None]) -> tuple[float, dict[str, float]]:
        nonlocal batches, features
        if features:
            batches, features = features.of(batches, state, check), None
        predictions = predict(step, state, batches, task.kind, task.outputs, mesh, check)
        if not np.isfinite(predictions.logits).all():
            return float("nan"), {}
        if task.kind in OUTCOMES:
            truth, scores = metrics.one_vs_rest(predictions)
            if not len(metrics.scorable(truth)):  # notes of one class alone cannot be ranked
                return 0.0, {}
            area = metrics.auroc(truth, scores)
            return area, {"auroc": area, "auprc": metrics.auprc(truth, scores)}
        values = metrics.evaluate(predictions)
        if task.kind == "lm":
            return -values["perplexity"], {"perplexity": values["perplexity"]}
        if np.isnan(values["f1"]):  # no entity, neither annotated nor predicted
            return 0.0, {}
        names = ("f1", "precision", "recall") if task.kind == "tokens" else ("f1", "exact")
        return values["f1"], {name: values[name] for name in names}

    return validate
