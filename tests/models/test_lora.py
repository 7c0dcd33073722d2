"""A linear layer and its named adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlora.errors import UserError
from jaxlora.models.lora import LoraLinear, column_norms, start_from_base
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.techniques import described

SPECS = {"clinical": LoraSpec(3, 6.0), "downstream": LoraSpec(5, 2.5)}
X = np.random.default_rng(1).normal(size=(2, 7, 6)).astype(np.float32)


def layer(specs, values=(), features_in=6, features_out=4, name="q_proj") -> LoraLinear:
    """The layer as the scan over layers sees it, with random weights, or those that `values` gives by path."""
    abstract = nnx.eval_shape(
        lambda: LoraLinear(name, 1, features_in, features_out, specs, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"))
    )
    definition, state = nnx.split(abstract)
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        rng = np.random.default_rng([len(path), *".".join(path).encode()])
        value = dict(values).get(path, rng.normal(size=leaf.shape[1:]))
        leaves.append((path, leaf.replace(jnp.asarray(value, jnp.float32))))
    return nnx.merge(definition, nnx.from_flat_state(leaves))


def weights(of: LoraLinear, name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(of.adapters[name].a[...], np.float64), np.asarray(of.adapters[name].b[...], np.float64)


def identity(specs) -> LoraLinear:
    """A layer whose kernel is zero and whose adapters are identities: its output is the sum of the adapters' inputs."""
    values = {("adapters", name, leaf): np.eye(6) for name in specs for leaf in "ab"}
    return layer(specs, {("kernel",): np.zeros((6, 6)), **values}, features_out=6)


def test_scale_is_alpha_over_rank():
    sizes = [spec.size_of("model.layers.0.self_attn.q_proj") for spec in (LoraSpec(16, 32.0), LoraSpec(8, 4.0))]
    assert [size.scale for size in sizes] == [2.0, 0.5]


@pytest.mark.parametrize("active", [(), ("clinical",), ("downstream",), ("clinical", "downstream")])
def test_fused_path_is_the_sum_of_separate_adapters(active):
    q = layer(SPECS)
    expected = X.astype(np.float64) @ np.asarray(q.kernel[...], np.float64)
    for name in active:
        a, b = weights(q, name)
        expected += SPECS[name].alpha / SPECS[name].rank * (X @ a @ b)
    np.testing.assert_allclose(q(X, active), expected, rtol=1e-5, atol=1e-5)


def test_order_of_active_does_not_matter():
    q = layer(SPECS)
    np.testing.assert_array_equal(q(X, ("downstream", "clinical")), q(X, ("clinical", "downstream")))


def test_inactive_adapter_changes_no_bit():
    without = layer({"clinical": SPECS["clinical"]})
    np.testing.assert_array_equal(layer(SPECS)(X, ("clinical",)), without(X, ("clinical",)))
    np.testing.assert_array_equal(layer(SPECS)(X), layer({})(X))


def test_fresh_adapter_is_kaiming_in_float32_and_changes_nothing():
    spec = {"clinical": LoraSpec(4, 8.0)}
    fresh = nnx.state(
        LoraLinear("q_proj", 2, 256, 4, spec, rngs=nnx.Rngs(0), dtype=jnp.dtype("bfloat16"))
    ).to_pure_dict()["adapters"]["clinical"]
    assert fresh["a"].dtype == fresh["b"].dtype == jnp.float32
    assert not np.any(fresh["b"])
    assert np.abs(fresh["a"]).max() <= 1 / 16 and abs(np.std(fresh["a"]) * 16 - 3**-0.5) < 0.03  # U(-1/16, 1/16)
    q = layer(SPECS, {("adapters", name, "b"): np.zeros((s.rank, 4)) for name, s in SPECS.items()})
    np.testing.assert_array_equal(q(X, ("clinical", "downstream")), q(X))


def test_adapter_that_does_not_target_the_layer_is_not_there():
    q = layer({"clinical": LoraSpec(3, 6.0, targets=("v_proj",))})
    assert [path for path, _ in nnx.to_flat_state(nnx.state(q))] == [("kernel",)]
    np.testing.assert_array_equal(q(X, ("clinical",)), q(X))


def test_no_dropout_without_a_key():
    dropping = {name: LoraSpec(s.rank, s.alpha, dropout=0.5) for name, s in SPECS.items()}
    active = ("clinical", "downstream")
    np.testing.assert_array_equal(layer(dropping)(X, active), layer(SPECS)(X, active))


def test_dropout_is_decided_by_the_key():
    q = layer({"clinical": LoraSpec(3, 6.0, dropout=0.5)})
    first, again, other = (np.asarray(q(X, ("clinical",), jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_dropout_leaves_the_kernel_path_alone():
    q = layer({"clinical": LoraSpec(3, 6.0, dropout=0.5)}, {("adapters", "clinical", "b"): np.zeros((3, 4))})
    np.testing.assert_array_equal(q(X, ("clinical",), jax.random.key(0)), q(X))


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    q = identity({"clinical": LoraSpec(6, 6.0, dropout=0.25)})
    kept = np.asarray(q(np.ones((5000, 6), np.float32), ("clinical",), jax.random.key(0)))
    np.testing.assert_allclose(np.unique(kept), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(kept.mean() - 1.0) < 0.02


def test_each_adapter_has_a_mask_and_a_rate_of_its_own():
    ones, key = np.ones((500, 6), np.float32), jax.random.key(0)
    opposite = identity({"a": LoraSpec(6, 6.0, dropout=0.5), "b": LoraSpec(6, -6.0, dropout=0.5)})
    assert not np.any(opposite(ones, ("a", "b")))
    assert set(np.unique(opposite(ones, ("a", "b"), key))) == {-2.0, 0.0, 2.0}  # one mask for both would cancel
    one_drops = identity({"a": LoraSpec(6, 6.0, dropout=0.5), "b": LoraSpec(6, 6.0)})
    assert set(np.unique(one_drops(ones, ("a", "b"), key))) == {1.0, 3.0}


def stacked(specs, layers=3, features_in=6, features_out=4, bias=False) -> LoraLinear:
    """The layers as the model holds them, as training starts."""
    linear = LoraLinear(
        "q_proj", layers, features_in, features_out, specs, bias=bias, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32")
    )
    for name, spec in specs.items():
        if spec.dora or spec.init != "lora":
            start_from_base(linear, name)
    return linear


def of_layer(linear, number) -> LoraLinear:
    definition, state = nnx.split(linear)
    return nnx.merge(definition, jax.tree.map(lambda x: x[number], state))


def shaken(linear, seed=0) -> LoraLinear:
    """The same with every adapter trained a little, but for what is beyond a layer's rank."""
    rng = np.random.default_rng(seed)
    for path, leaf in nnx.to_flat_state(nnx.state(linear)):
        if "adapters" in path and "initial" not in path:
            i = [n for n, _ in linear.specs].index(path[1])
            ranks = np.asarray(linear.ranks[i])[:, None]
            noise = rng.normal(size=leaf.shape) * (0.2 if path[-1] == "magnitude" else 1.0)
            own = np.arange(max(linear.ranks[i])) < ranks
            kept = {"a": own[:, None], "b": own[:, :, None], "magnitude": ranks > 0}[path[-1]]
            leaf[...] = leaf[...] + jnp.asarray(np.where(kept, noise, 0.0), jnp.float32)
    return linear


def dense(linear, number, active) -> np.ndarray:
    """The layer's whole weight, by each technique's own formula, in float64."""
    w = np.asarray(linear.kernel[...][number], np.float64)
    total = w.copy()
    for (name, spec), ranks, scales in zip(linear.specs, linear.ranks, linear.scales, strict=True):
        if name not in active or not ranks[number]:
            continue
        weights = linear.adapters[name]
        a, b = (np.asarray(x[...][number], np.float64) for x in (weights.a, weights.b))
        delta = scales[number] * a @ b
        if spec.init != "lora":
            a0, b0 = (np.asarray(weights.initial[x][...][number], np.float64) for x in "ab")
            delta -= scales[number] * a0 @ b0
        if spec.dora:
            magnitude = np.asarray(weights.magnitude[...][number], np.float64)
            delta = magnitude * (w + delta) / np.linalg.norm(w + delta, axis=0) - w
        total += delta
    return total


KIN = {
    "plain": LoraSpec(3, 6.0),
    "rslora": LoraSpec(3, 6.0, rslora=True),
    "dora": LoraSpec(2, 2.0, dora=True),
    "pissa": LoraSpec(2, 3.0, init="pissa"),
    "pissa_dora": LoraSpec(2, 3.0, init="pissa", dora=True),
    "ragged": LoraSpec(3, 6.0, targets=("layers.[02].*",), ranks=(("layers.0.*", 1),), dora=True),
}


@pytest.mark.parametrize("active", [[name] for name in KIN] + [["plain", "dora"], sorted(KIN)])
def test_every_kin_is_its_own_formula(active):
    linear = shaken(stacked({name: KIN[name] for name in active}))
    for number in range(3):
        found = of_layer(linear, number)(X, tuple(active), None, number)
        np.testing.assert_allclose(found, X @ dense(linear, number, active), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KIN)
def test_every_kin_starts_as_the_base(name):
    linear = stacked({name: KIN[name]})
    for number in range(3):
        layer = of_layer(linear, number)
        np.testing.assert_allclose(layer(X, (name,), None, number), layer(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16"])
def test_pissa_starts_from_the_principal_part(init):
    linear = stacked({"p": LoraSpec(2, 3.0, init=init)})
    for number in range(3):
        u, s, v = np.linalg.svd(np.asarray(linear.kernel[...][number], np.float64))
        a, b = (np.asarray(x[...][number]) for x in (linear.adapters["p"].a, linear.adapters["p"].b))
        np.testing.assert_allclose(1.5 * a @ b, (u[:, :2] * s[:2]) @ v[:2], atol=1e-4)
        np.testing.assert_allclose((a * a).sum(axis=0), (b * b).sum(axis=1), rtol=1e-4)  # split evenly


def test_what_is_beyond_a_layers_rank_has_no_gradient():
    linear = shaken(stacked({"ragged": KIN["ragged"]}))
    definition, state = nnx.split(linear)

    def loss(state):
        linear = nnx.merge(definition, state)
        return sum((of_layer(linear, i)(X, ("ragged",), None, i) ** 2).sum() for i in range(3))

    gradient = jax.grad(loss)(state)["adapters"]["ragged"]
    a, b, magnitude = (np.asarray(gradient[x][...]) for x in ("a", "b", "magnitude"))
    assert a[0, :, :1].any() and not a[0, :, 1:].any() and not b[0, 1:].any()
    assert a[2].all() and not a[1].any() and not b[1].any() and not magnitude[1].any()


def test_doras_norm_has_no_gradient():
    linear = shaken(stacked({"dora": KIN["dora"]}, layers=1))
    layer = of_layer(linear, 0)
    b = np.asarray(layer.adapters["dora"].b[...])
    stretch = layer.adapters["dora"].magnitude[...] / np.linalg.norm(
        np.asarray(layer.kernel[...]) + np.asarray(layer.adapters["dora"].a[...]) @ b, axis=0
    )
    definition, state = nnx.split(layer)
    gradient = jax.grad(lambda s: nnx.merge(definition, s)(X, ("dora",)).sum())(state)["adapters"]["dora"]["b"]
    wanted = (X.reshape(-1, 6) @ np.asarray(layer.adapters["dora"].a[...])).sum(axis=0)[:, None] * stretch
    np.testing.assert_allclose(gradient[...], wanted, rtol=1e-4, atol=1e-5)


def test_column_norms_are_those_of_the_sum():
    rng = np.random.default_rng(0)
    w, a, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 2)), rng.normal(size=(2, 4))
    found = column_norms(*(jnp.asarray(x, jnp.float32) for x in (w, a, b)))
    np.testing.assert_allclose(found, np.linalg.norm(w + a @ b, axis=0), rtol=1e-5)


def test_a_bias_is_added_once():
    linear = stacked({"dora": KIN["dora"]}, bias=True)
    linear.bias[...] = jnp.arange(12.0).reshape(3, 4)
    with_bias = of_layer(linear, 1)
    np.testing.assert_allclose(with_bias(X, ("dora",)), with_bias(X), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(with_bias(X), X @ linear.kernel[...][1] + np.arange(4.0, 8.0), rtol=1e-4, atol=1e-5)


def test_pissa_of_a_rank_that_a_layer_does_not_have_is_an_error():
    with pytest.raises(UserError, match="config.adapters.p.rank is 5; PiSSA has no such rank in a layer of 6 by 4"):
        stacked({"p": LoraSpec(5, 5.0, init="pissa")})


def test_a_spec_is_described_without_what_is_usual():
    spec = LoraSpec(4, 8.0, targets=("q_proj",), dora=True)
    assert described(spec, workdir="x") == "adapter(rank=4, alpha=8.0, targets=('q_proj',), dora=True, workdir='x')"
