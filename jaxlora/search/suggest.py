"""What a search tries next.

A suggestion follows from the seed and from what was tried before, and from nothing else: there is no state of a sampler
to keep, a search that was killed goes on with the trials it would have made, and every host of a pod suggests the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlora.errors import UserError
from jaxlora.search.record import Trial
from jaxlora.search.space import Dimension, grid, size

METHODS = ("grid", "random", "bayes")
_AT_RANDOM = 4  # trials, at the least, before Bayes has something to go by
_AGAIN = 20  # suggestions that were tried before, before one is drawn that was not


def suggest(
    method: str, space: Sequence[Dimension], tried: Sequence[Trial], budget: int, together: int, seed: int
) -> list[dict[str, Any]]:
    """Returns the settings of the next trials, none where the budget is spent.

    A grid and a random search suggest everything at once, a Bayesian one `together` trials. No settings are suggested
    twice, so that a space of values ends when all were tried.

    Args:
      method: of `METHODS`. tried: the trials before, with their scores.

    Raises:
      UserError: a grid is larger than the budget or has a range; Optuna is not installed.
    """
    left = int(min(budget, size(space))) - len(tried)
    if method == "grid":
        points = grid(space)
        if len(points) > budget:
            raise UserError(
                f"config.search.space is a grid of {len(points)} trials, and config.search.budget is {budget}; raise "
                "it, take values away, or set config.search.method = 'random'"
            )
        return points[len(tried) :]
    if left <= 0:
        return []
    if method == "random":
        return [_drawn(space, number, seed) for number in range(len(tried), len(tried) + left)]
    return _bayes(space, tried, min(left, together), seed)


def _drawn(space: Sequence[Dimension], number: int, seed: int) -> dict[str, Any]:
    """Returns the settings of a number at random: a space of values is drawn from without putting back."""
    if np.isfinite(size(space)):
        points = grid(space)
        return points[np.random.default_rng(seed).permutation(len(points))[number]]
    random = np.random.default_rng((seed, number))
    return {dimension.field: dimension.at(random.random()) for dimension in space}


def _bayes(space: Sequence[Dimension], tried: Sequence[Trial], count: int, seed: int) -> list[dict[str, Any]]:
    """Returns what the tree-structured Parzen estimator of Optuna suggests.

    A trial that diverged is pruned in Optuna's words: worse than any that has a score. Those of one round are told from
    one another as the estimator takes a running trial for a bad one ("constant liar").
    """
    try:
        import optuna
    except ImportError:
        raise UserError("config.search.method = 'bayes' needs Optuna; pip install jaxlora[search]") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own_seed = int(np.random.SeedSequence((seed, len(tried))).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=own_seed, n_startup_trials=max(_AT_RANDOM, count))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    forms = {dimension.field: _distribution(optuna, dimension) for dimension in space}
    states = optuna.trial.TrialState
    for trial in tried:
        own = trial.settings
        point = {d.field: d.values.index(own[d.field]) if d.values else own[d.field] for d in space}
        scored = trial.score is not None
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if scored else states.PRUNED, value=trial.score, params=point, distributions=forms
            )
        )
    before, found = [trial.settings for trial in tried], []
    for _ in range(count):
        for _ in range(_AGAIN):
            asked = study.ask(forms)
            settings = {d.field: d.values[asked.params[d.field]] if d.values else asked.params[d.field] for d in space}
            if settings not in before + found or size(space) == np.inf:
                break
            study.tell(asked, state=states.FAIL)  # which the estimator forgets
        else:
            settings = _untried(space, before + found, own_seed)
        found.append(settings)
    return found


def _distribution(optuna, dimension: Dimension):
    """Returns a dimension as Optuna has it; values by their place, so that neighbours among numbers are alike."""
    if not dimension.values:
        return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.ordered:
        return optuna.distributions.IntDistribution(0, len(dimension.values) - 1)
    return optuna.distributions.CategoricalDistribution(range(len(dimension.values)))


def _untried(space: Sequence[Dimension], before: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    points = [point for point in grid(space) if point not in before]
    return points[np.random.default_rng(seed).integers(len(points))]
