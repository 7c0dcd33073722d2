"""The learning rate by update, and AdamW by its formula."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.errors import UserError
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train.optimizer import make_optimizer, schedule


def test_rate_rises_to_the_peak_and_falls_to_zero():
    rate = schedule(1.0, updates=100, warmup=0.1, decay="linear")
    rates = [float(rate(i)) for i in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)  # the first update already learns
    np.testing.assert_allclose(rates[9:], np.linspace(1.0, 0.0, 92), atol=1e-6)
    assert rates[99] > 0.0 and rates[100] == 0.0


def test_constant_rate_stays_at_the_peak():
    rate = schedule(0.5, updates=10, warmup=0.2, decay="constant")
    assert [float(rate(i)) for i in range(10)] == pytest.approx([0.25] + [0.5] * 9)


@pytest.mark.parametrize("updates, warmup", [(1, 0.06), (3, 0.0), (5, 1.0)])
def test_rate_is_positive_and_peaks_however_short_the_run(updates, warmup):
    rate = schedule(2.0, updates, warmup, "linear")
    rates = [float(rate(i)) for i in range(updates)]
    assert min(rates) > 0.0 and max(rates) == pytest.approx(2.0)


@pytest.mark.parametrize("accumulate", [1, 2, 4, 10])
def test_paper_schedule_is_that_of_the_published_code(accumulate):
    """transformers' get_linear_schedule_with_warmup, given 0.06 updates of warm-up and as many updates as there are
    micro-batches: nothing at first, then the peak, and a decay that is cut off."""
    rate = schedule(3e-4, updates=50, warmup=0.06, decay="paper", paper_accumulate=accumulate)
    total, rates = 50 * accumulate, [float(rate(i)) for i in range(50)]
    assert rates[0] == 0.0 and rates[1] == pytest.approx(3e-4 * (total - 1) / (total - 0.06), rel=1e-6)
    wanted = [3e-4 * (total - i) / (total - 0.06) for i in range(1, 50)]
    np.testing.assert_allclose(rates[1:], wanted, rtol=1e-5)
    assert rates[-1] == pytest.approx(3e-4 * (1 - 1 / accumulate), abs=3e-4 / total * 1.1)
    assert float(schedule(3e-4, 50, 0.0, "paper", accumulate)(0)) == pytest.approx(3e-4)  # the runs of May 2023


def test_unknown_decay_is_an_error():
    with pytest.raises(UserError, match="config.decay: no 'lineal'; did you mean 'linear'"):
        schedule(1.0, 10, 0.1, "lineal")


def run(optimizer, gradients, start):
    """The parameter after each update; one whole program."""

    @jax.jit
    def step(param, state, gradient):
        updates, state = optimizer.update(gradient, state, param)
        return optax.apply_updates(param, updates), state

    param, state, found = np.float32(start), optimizer.init(np.float32(start)), []
    for gradient in gradients:
        param, state = step(param, state, np.float32(gradient))
        found.append(float(param))
    return found


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_adamw_is_its_formula(clip):
    gradients, w, m, v, expected = [0.5, -3.0, 2.0, 0.1, -0.2], 1.5, 0.0, 0.0, []
    rate = schedule(0.1, updates=5, warmup=0.4, decay="linear")
    for t, g in enumerate(gradients, 1):
        g = float(np.clip(g, -clip, clip)) if clip else g
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w -= float(rate(t - 1)) * (step + 0.3 * w)  # decoupled decay
        expected.append(w)
    found = run(make_optimizer(rate, weight_decay=0.3, clip=clip), gradients, 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_clip_is_of_the_global_norm():
    gradients = {"a": np.float32([3.0, 0.0]), "b": np.float32([4.0])}
    params = jax.tree.map(np.zeros_like, gradients)

    def moments(clip):
        optimizer = make_optimizer(optax.constant_schedule(1.0), 0.0, clip)
        _, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
        return optax.tree_utils.tree_get(state, "mu")

    clipped = moments(1.0)
    np.testing.assert_allclose(clipped["a"], [0.06, 0.0], rtol=1e-5)  # 0.1 * 3 / 5
    np.testing.assert_allclose(clipped["b"], [0.08], rtol=1e-5)
    np.testing.assert_allclose(moments(0.0)["b"], [0.4], rtol=1e-5)


def test_lora_plus_multiplies_the_rate_of_b_and_magnitude_alone(random_llama):
    spec = {"clinical": LoraSpec(2, 4.0, dora=True)}
    params = partition.select(nnx.state(random_llama(spec, 2)), ["adapter/clinical", "head"])
    gradients = jax.tree.map(np.ones_like, params)

    def updates(b_rate):
        optimizer = make_optimizer(optax.constant_schedule(0.1), 0.5, 0.0, b_rate)
        return dict(nnx.to_flat_state(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0]))

    usual, plus = updates(1.0), updates(16.0)
    for path, leaf in usual.items():
        times = 16.0 if path[-1] in ("b", "magnitude") else 1.0
        np.testing.assert_allclose(plus[path][...], times * leaf[...], rtol=1e-6)
    assert {path[-1] for path in usual} == {"a", "b", "magnitude", "kernel"}
