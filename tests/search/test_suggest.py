"""A search tries the space it was given, the same trials for the same seed, and Bayes finds what is there."""

import math
import sys

import numpy as np
import pytest

from jaxlora.errors import UserError
from jaxlora.search.record import COMPLETE, DIVERGED, Trial, best_of
from jaxlora.search.space import Dimension, grid
from jaxlora.search.suggest import suggest

# The paper's space of a LoRA (section 1.3).
LORA = (
    Dimension("adapters.downstream.rank", (2, 4, 8, 16)),
    Dimension("adapters.downstream.alpha", (4.0, 8.0, 16.0, 32.0)),
    Dimension("adapters.downstream.dropout", (0.0, 0.1, 0.2)),
)
RATE = Dimension("learning_rate", (), 1e-5, 1e-1, True)
WARMUP = Dimension("warmup", (), 0.0, 1.0)


def search(method, space, objective, budget, together=4, seed=0, trials=()):
    """Goes on with the trials to the end of a search whose objective is a function; None is a divergence."""
    trials = list(trials)
    while found := suggest(method, space, trials, budget, together, seed):
        assert method != "bayes" or len(found) <= together
        for settings in found:
            score = objective(settings)
            status = DIVERGED if score is None else COMPLETE
            trials.append(Trial(f"trial-{len(trials):03d}", settings, status, score))
    return trials


def settings_of(trials):
    return [trial.settings for trial in trials]


def as_set(settings):
    return {tuple(point.items()) for point in settings}


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_a_space_of_values_is_tried_whole_and_nothing_twice(method):
    trials = search(method, LORA, lambda own: own["adapters.downstream.alpha"], budget=60 if method != "grid" else 48)
    assert len(trials) == 48 and as_set(settings_of(trials)) == as_set(grid(LORA))


def test_a_grid_over_the_budget_is_refused():
    with pytest.raises(UserError, match="a grid of 48 trials, and config.search.budget is 20"):
        suggest("grid", LORA, [], 20, 4, 0)


@pytest.mark.parametrize("method", ["random", "bayes"])
@pytest.mark.parametrize("space", [LORA, (RATE, *LORA)])
def test_the_seed_alone_decides(method, space):
    def objective(own):
        return own["adapters.downstream.rank"] / 16 - own["adapters.downstream.dropout"]

    one, same, other = (search(method, space, objective, 12, seed=seed) for seed in (3, 3, 4))
    assert settings_of(one) == settings_of(same) and len(one) == 12
    assert as_set(settings_of(one)) != as_set(settings_of(other))


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_larger_budget_goes_on_with_the_same_trials(method):
    def objective(own):
        return -abs(math.log10(own["learning_rate"]) + 3)

    space = (RATE, *LORA)
    short, long = search(method, space, objective, 8), search(method, space, objective, 16)
    assert settings_of(long)[:8] == settings_of(short)
    assert settings_of(search(method, space, objective, 16, trials=short)) == settings_of(long)


def test_random_draws_fill_a_range_evenly():
    shares = [RATE.share(own["learning_rate"]) for own in suggest("random", (RATE, WARMUP), [], 400, 4, 0)]
    counts, _ = np.histogram(shares, bins=4, range=(0, 1))
    assert counts.sum() == 400 and counts.min() > 70


@pytest.mark.parametrize("place", [0.2, 0.7])
def test_bayes_finds_a_planted_optimum_and_random_search_comes_less_near(place):
    def objective(own):
        return -abs(RATE.share(own["learning_rate"]) - place) - abs(own["warmup"] - 1 + place)

    def misses(method):
        found = [best_of(search(method, (RATE, WARMUP), objective, 40, seed=seed)).score for seed in range(5)]
        return -np.mean(found)

    assert misses("bayes") < 0.05 and misses("bayes") < misses("random")


def test_bayes_keeps_away_from_what_diverges():
    def objective(own):
        return None if own["learning_rate"] > 1e-3 else own["learning_rate"]

    trials = search("bayes", (RATE,), objective, 40)
    early, late = ([trial.score is None for trial in part] for part in (trials[:8], trials[20:]))
    assert np.mean(late) < np.mean(early)
    assert best_of(trials).score > 5e-4


def test_bayes_without_optuna_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna; pip install jaxlora\[search\]"):
        suggest("bayes", LORA, [], 20, 4, 0)
    assert len(suggest("random", LORA, [], 20, 4, 0)) == 20
