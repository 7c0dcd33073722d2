"""(IA)^3 and AdaLoRA in a linear layer, by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlora import config
from jaxlora.errors import UserError
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.lora import LoraLinear
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.techniques import described, spec_json, spec_of

OUT = Ia3Spec(("v_proj",), ())
INTO = Ia3Spec(("v_proj",), ("v_proj",))
LORA = LoraSpec(2, 6.0, targets=("v_proj",))


def layer(specs, number=0, layers=2):
    """One layer's slice of a v_proj of 5 inputs and 3 outputs, of random parameters, and these by name."""
    linear = LoraLinear("v_proj", layers, 5, 3, specs, bias=True, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"))
    definition, state = nnx.split(linear)
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in nnx.to_flat_state(state)}
    values = {path: value[number] for path, value in leaves.items()}
    state = nnx.from_flat_state([(p, leaf.replace(jnp.asarray(values[p]))) for p, leaf in nnx.to_flat_state(state)])
    return nnx.merge(definition, state), {".".join(path[-2:]): value for path, value in values.items()}


X = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


def test_vectors_rescale_the_frozen_layer_and_a_lora_is_added_beside_it():
    linear, p = layer({"one": OUT, "two": INTO, "three": OUT, "lora": LORA})
    kernel, bias = p["kernel"], p["bias"]
    low = 3.0 * X @ p["lora.a"] @ p["lora.b"]

    def check(active, wanted):
        np.testing.assert_allclose(linear(X, active), wanted, rtol=1e-5, atol=1e-5)

    check((), X @ kernel + bias)
    check(("one",), p["one.gain_out"] * (X @ kernel + bias))
    check(("two",), (p["two.gain_in"] * X) @ kernel + bias)
    check(("one", "three"), p["one.gain_out"] * p["three.gain_out"] * (X @ kernel + bias))
    check(("one", "lora"), p["one.gain_out"] * (X @ kernel + bias) + low)
    check(("two", "lora"), (p["two.gain_in"] * X) @ kernel + bias + low)


def test_a_layer_without_the_adapter_is_not_rescaled_and_gives_its_vector_no_gradient():
    spec = Ia3Spec((".*layers.1.*v_proj",), ())
    linear, p = layer({"one": spec}, 0)
    for number, here in ((0, False), (1, True)):
        definition, state = nnx.split(linear)

        def loss(state, number=number, definition=definition):
            return jnp.square(nnx.merge(definition, state)(X, ("one",), None, number)).sum()

        gradient = jax.grad(loss)(state).adapters["one"].gain_out[...]
        assert bool(np.any(gradient)) == here
    np.testing.assert_allclose(linear(X, ("one",), None, 0), X @ p["kernel"] + p["bias"], rtol=1e-5)


def test_adalora_is_its_triplets_over_the_rank():
    linear, p = layer({"ada": AdaLoraSpec(3, 6.0, targets=("v_proj",), target_rank=1)})
    wanted = X @ p["kernel"] + p["bias"] + 6 / (3 + 1e-5) * (X @ p["ada.a"] * p["ada.e"]) @ p["ada.b"]
    np.testing.assert_allclose(linear(X, ("ada",)), wanted, rtol=1e-5, atol=1e-5)


def test_fresh_adapters_change_nothing_and_are_absent_where_they_are_not_targeted():
    specs = {"ia3": INTO, "ada": AdaLoraSpec(4, 8.0, targets=(".*layers.1.*v_proj",), target_rank=1)}
    linear = LoraLinear("v_proj", 2, 200, 300, specs, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"))
    ada = linear.adapters["ada"]
    assert not np.any(ada.e[...]) and np.all(linear.adapters["ia3"].gain_in[...] == 1)
    for matrix in (ada.a[...], ada.b[...]):
        assert not np.any(matrix[0]) and np.std(matrix[1]) == pytest.approx(0.02, rel=0.1)
    other = LoraLinear("q_proj", 2, 5, 3, specs, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"))
    assert not other.adapters


@pytest.mark.parametrize(
    "spec, words",
    [
        (Ia3Spec(("k_prj",)), "x.targets: 'k_prj' matches no layer"),
        (Ia3Spec(("k_proj",)), "x.feedforward: 'down_proj' is none of the targeted layers, k_proj"),
        (AdaLoraSpec(target_rank=12), "x.target_rank is 12; it must be from 1 to 11"),
        (AdaLoraSpec(start=-1), "x.start is -1; it must be 0 or more"),
        (AdaLoraSpec(interval=0), "x.interval is 0; it must be 1 or more"),
        (AdaLoraSpec(beta2=1.0), "x.beta2 is 1.0; it must be between 0 and 1"),
        (AdaLoraSpec(dora=True), "x.dora is True; an AdaLoRA has none, give False"),
    ],
)
def test_what_does_not_fit(spec, words):
    with pytest.raises(UserError) as error:
        spec.check(2, "x")
    assert words in str(error.value)


@pytest.mark.parametrize("spec", [OUT, Ia3Spec(), AdaLoraSpec(5, 3.0, start=2, layers=(1,))])
def test_a_description_comes_back_from_json_and_from_its_line(spec):
    assert spec_of(spec_json(spec)) == spec
    made = eval(described(spec, workdir="run"), {"adalora": config.adalora, "ia3": config.ia3})
    assert made.workdir == "run"
    assert spec_of({field: value for field, value in made.items() if field != "workdir"}) == spec


def test_the_form_of_an_adapter_is_where_it_is_and_not_how_it_is_trained():
    named = Ia3Spec((".*k_proj", "self_attn.v_proj", "down_proj"))
    assert named.form(2) == Ia3Spec().form(2) != OUT.form(2)
    assert AdaLoraSpec(start=5, orthogonality=0.1).form(2) == AdaLoraSpec().form(2) != AdaLoraSpec(11).form(2)
    assert AdaLoraSpec().form(2) != LoraSpec(12, 8.0).form(2)
