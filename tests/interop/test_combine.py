"""Several adapters as one: what the model computes with all of them, and what was lost, against numpy."""

import numpy as np
import pytest

from jaxlora.interop.combine import combine
from jaxlora.models.lora_spec import LoraSpec

FIRST = LoraSpec(3, 6.0, targets=("q_proj", "v_proj", "down_proj"), dropout=0.1)
SECOND = LoraSpec(2, 1.5, targets=("v_proj", "up_proj"), layers=(1,), rslora=True)
SAME = LoraSpec(3, 1.5, targets=("v_proj", "up_proj"), rslora=True)
PATTERNS = LoraSpec(4, 8.0, ranks=(("q_proj", 2), (r".*0\..*v_proj", 6)), alphas=(("v_proj", 3.0),))
V = "model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(layers=2)


@pytest.fixture(scope="module")
def two(model, random_adapter):
    """Two adapters of the model: `two(spec, other)`."""
    return lambda *specs: [random_adapter(model.config, spec, seed=i) for i, spec in enumerate(specs)]


def delta(adapter, module):
    """What the adapter adds to a layer, in float64; zero where it is absent."""
    if module not in adapter.weights:
        return 0.0
    here, scale = adapter.weights[module], adapter.size(module).scale
    return scale * here["a"].astype(np.float64) @ here["b"].astype(np.float64)


def exact(adapters, weights, module):
    return sum(w * delta(adapter, module) for adapter, w in zip(adapters, weights, strict=True))


def modules_of(adapters):
    return sorted({module for adapter in adapters for module in adapter.weights})


def lost(adapters, weights, one):
    """|sum - one| / |sum| over all layers, from the products themselves."""
    modules = modules_of(adapters)
    wanted = [exact(adapters, weights, m) for m in modules]
    squares = [[np.square(w).sum(), np.square(w - delta(one, m)).sum()] for w, m in zip(wanted, modules, strict=True)]
    whole, error = np.sum(squares, axis=0)
    return (error / whole) ** 0.5


@pytest.mark.parametrize("specs", [(FIRST, SECOND), (FIRST, PATTERNS), (PATTERNS, SECOND)], ids=["a", "b", "c"])
def test_concatenated_adapters_compute_what_both_do(specs, two, model, adapted_logits):
    adapters = two(*specs)
    one, error = combine(adapters, (1.0, 1.0), "cat", 0)
    together = adapted_logits(model, {"clinical": adapters[0], "downstream": adapters[1]})
    np.testing.assert_allclose(adapted_logits(model, {"both": one}), together, atol=1e-5, rtol=0)
    assert np.abs(adapted_logits(model, {"clinical": adapters[0]}) - together).max() > 0.1
    assert error == 0.0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (1.0, -1.0), (0.0, 3.0)], ids=str)
def test_concatenation_is_the_weighted_sum(weights, two):
    adapters = two(FIRST, SECOND)
    one, _ = combine(adapters, weights, "cat", 0)
    assert sorted(one.weights) == modules_of(adapters)
    for module in one.weights:
        np.testing.assert_allclose(delta(one, module), exact(adapters, weights, module), atol=1e-6)
    assert [one.size(V).rank, one.size(V).scale] == [5, 1.0]
    assert one.spec.dropout == 0.1 and one.head is None


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)], ids=str)
def test_linear_adds_the_factors_and_tells_what_that_changes(weights, two):
    adapters = two(FIRST, SAME)
    one, error = combine(adapters, weights, "linear", 0)
    roots = [(w * adapter.size(V).scale) ** 0.5 for adapter, w in zip(adapters, weights, strict=True)]
    a, b = (sum(r * x.weights[V][leaf] for r, x in zip(roots, adapters, strict=True)) for leaf in "ab")
    np.testing.assert_allclose(delta(one, V), a @ b, atol=1e-6)
    alone = "model.layers.0.self_attn.q_proj"  # of one adapter: nothing crosses
    np.testing.assert_allclose(delta(one, alone), exact(adapters, weights, alone), atol=1e-6)
    assert error == pytest.approx(lost(adapters, weights, one), rel=1e-4) and error > 0.1


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_svd_is_the_nearest_product_of_its_rank(rank, two):
    adapters, weights = two(FIRST, SECOND), (0.5, 2.0)
    one, error = combine(adapters, weights, "svd", rank)
    for module in one.weights:
        wanted = exact(adapters, weights, module)
        u, s, v = np.linalg.svd(wanted)
        np.testing.assert_allclose(delta(one, module), u[:, :rank] * s[:rank] @ v[:rank], atol=1e-5)
        parts = sum(x.size(module).rank for x in adapters if module in x.weights)
        assert one.size(module).rank == min(rank, parts)  # no rank that nothing would fill
    assert error == pytest.approx(lost(adapters, weights, one), rel=1e-3)


def test_svd_of_the_whole_rank_loses_nothing(two):
    adapters = two(FIRST, SECOND)
    one, error = combine(adapters, (1.0, 1.0), "svd", 50)
    assert error < 1e-6
    for module in one.weights:
        np.testing.assert_allclose(delta(one, module), exact(adapters, (1.0, 1.0), module), atol=1e-5)


def test_one_adapter_may_be_weighted_or_cut_to_a_smaller_rank(two):
    adapters = two(FIRST)
    halved, _ = combine(adapters, (0.5,), "cat", 0)
    np.testing.assert_allclose(delta(halved, V), 0.5 * delta(adapters[0], V), atol=1e-6)
    cut, error = combine(adapters, (1.0,), "svd", 2)
    assert cut.size(V).rank == 2 and error == pytest.approx(lost(adapters, (1.0,), cut), rel=1e-3)


def test_adapters_that_cancel_or_add_nothing_have_no_error(two):
    zero = two(FIRST)[0]
    for here in zero.weights.values():
        here["b"][...] = 0.0
    one, error = combine([zero, zero], (1.0, 1.0), "svd", 2)
    assert error == 0.0 and not np.any(delta(one, V))


REFUSED = {
    "no such way": ((FIRST, SECOND), (1.0, 1.0), "concat", 0, "--combine: no 'concat'; did you mean 'cat'"),
    "no rank": ((FIRST, SECOND), (1.0, 1.0), "svd", 0, "--rank is 0; --combine=svd needs the rank"),
    "other ranks": ((FIRST, SECOND), (1.0, 1.0), "linear", 0, f"needs equal ranks; they differ in {V}"),
    "negative": ((FIRST, SAME), (1.0, -1.0), "linear", 0, "takes no negative weight"),
    "NaN": ((FIRST, SECOND), (1.0, float("nan")), "cat", 0, "--weights: 1.0, nan must be finite"),
    "DoRA": (
        (FIRST, LoraSpec(3, 6.0, dora=True)),
        (1.0, 1.0),
        "cat",
        0,
        "DoRA is no sum of low ranks; export it alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_sum_is_refused(case, two, refused):
    specs, weights, way, rank, part = REFUSED[case]
    assert part in refused(lambda: combine(two(*specs), weights, way, rank))
