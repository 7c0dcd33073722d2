"""Kernels in int8 and nf4: their codes, the layer that computes with them, and a model of such layers."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from jaxlora import partition
from jaxlora.errors import UserError
from jaxlora.models.llama import Llama
from jaxlora.models.lora import LoraLinear, start_from_base
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.quantized import PRECISIONS, QuantizedKernel, dequantize, quantize
from jaxlora.train.objective import Objective

ERRORS = {"int8": (0.005, 0.01), "nf4": (0.08, 0.11)}  # of normal weights
KERNEL = np.random.default_rng(0).normal(size=(2, 192, 24)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(3, 5, 192)).astype(np.float32)


def relative(found, wanted):
    return np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_error_is_that_of_the_bits(precision):
    codes, scales = quantize(KERNEL, precision)
    least, most = ERRORS[precision]
    assert least < relative(dequantize(codes, scales, jnp.float32), KERNEL) < most
    assert codes.nbytes * {"int8": 1, "nf4": 2}[precision] == KERNEL.size
    assert scales.shape == (2, 3, 24) and scales.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_are_read_as_qwix_reads_them(precision, dtype):
    theirs = qwix.quantize(
        jnp.asarray(KERNEL), precision, channelwise_axes=(0, 2), tiled_axes={1: 64}, scale_dtype=jnp.bfloat16
    )
    found = dequantize(*quantize(KERNEL, precision), dtype)
    np.testing.assert_array_equal(found, qwix.dequantize(theirs.astype(dtype)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_weight_changes_its_own_tile_alone(precision):
    changed = KERNEL.copy()
    changed[1, 64, 7] = 100.0
    before, after = (np.asarray(dequantize(*quantize(k, precision), jnp.float32)) for k in (KERNEL, changed))
    rows, columns = np.nonzero((before != after)[1])
    assert set(columns) == {7} and rows.min() == 64 and rows.max() <= 127
    np.testing.assert_array_equal(before[0], after[0])


def test_zeros_stay_zeros():
    for precision in PRECISIONS:
        assert not dequantize(*quantize(np.zeros((64, 4), np.float32), precision), jnp.float32).any()


def test_layer_without_tiles_is_refused():
    with pytest.raises(UserError, match="^config.quantize: a layer of 5 inputs has no tiles"):
        quantize(np.ones((5, 4), np.float32), "nf4")


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"^config.quantize is 'nf4', which needs qwix: pip install 'jaxlora\[qlora\]'"):
        quantize(KERNEL, "nf4")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_passes_through_to_the_input(precision):
    kernel = QuantizedKernel(KERNEL[0], precision)
    weight = np.asarray(kernel.dense(jnp.float32))
    found, back = jax.vjp(kernel, X)
    np.testing.assert_allclose(found, X @ weight, rtol=1e-4, atol=1e-4)
    gradient = np.random.default_rng(2).normal(size=found.shape).astype(np.float32)
    np.testing.assert_allclose(back(gradient)[0], gradient @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("remat", ["none", "save_dots"])
def test_backward_pass_finds_no_dense_kernel_saved(random_llama, packed_batch, precision, remat):
    model = quantized(random_llama({"clinical": LoraSpec(2, 4.0)}, embed=64, mlp=192, layers=3, remat=remat), precision)
    definition, params, frozen = partition.split(model, ["clinical"])

    def loss(params):
        return Objective("lm", ("clinical",)).loss(nnx.merge(definition, params, frozen), packed_batch)

    saved = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params))
    floats = [x.shape for x in saved if jnp.issubdtype(x.dtype, jnp.floating)]
    assert any(len(shape) > 2 and shape[0] == 3 for shape in floats)  # what the layers save is seen here
    assert not [shape for shape in floats if {64, 192} <= set(shape)]


def quantized(model: Llama, precision: str) -> Llama:
    """The model with the kernels of its blocks quantised."""
    specs = dict(model.blocks.q_proj.specs)
    shape = dataclasses.replace(model.config, quantize=precision)
    labels = model.head.kernel.shape[1] if hasattr(model, "head") else 0
    values = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}
    definition, state = nnx.split(nnx.eval_shape(lambda: Llama(shape, specs, labels, rngs=nnx.Rngs(0))))
    for path in [path for path, _ in nnx.to_flat_state(state) if path[-1] == "codes"]:
        codes, scales = jax.jit(quantize, static_argnums=1)(values[path[:-1]], precision)
        values |= {path: codes, (*path[:-1], "scales"): scales}
    leaves = [(path, leaf.replace(values[path])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(definition, nnx.from_flat_state(leaves))


@pytest.fixture(scope="module")
def runs(random_llama):
    """Twenty updates of a fresh adapter on one base, exact and quantised, by precision: the losses, the first update's
    gradient as one vector, and its hidden states."""
    model = random_llama({"clinical": LoraSpec(4, 8.0)}, embed=64, mlp=128, layers=2)
    for linear in (model.blocks.q_proj, model.blocks.v_proj):
        linear.adapters["clinical"].b[...] = np.zeros(linear.adapters["clinical"].b.shape, np.float32)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(1, 32, (4, 32)),
        "segments": np.repeat([[1, 2]] * 4, 16, axis=1),
        "positions": np.tile(np.arange(16), (4, 2)),
    }

    def run(model):
        definition, params, frozen = partition.split(model, ["clinical"])

        @jax.jit
        def update(params, frozen):
            def loss(params):
                model = nnx.merge(definition, params, frozen)
                return Objective("lm", ("clinical",)).loss(model, batch), model(*batch.values(), ("clinical",))

            (value, hidden), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients), value, gradients, hidden

        losses, first = [], None
        for _ in range(20):
            params, value, gradients, hidden = update(params, frozen)
            losses.append(float(value))
            first = first or (np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)]), np.asarray(hidden))
        return losses, *first

    return {"": run(model)} | {precision: run(quantized(model, precision)) for precision in PRECISIONS}


@pytest.mark.parametrize("precision, least", [("int8", 0.999), ("nf4", 0.95)])
def test_gradient_points_where_the_exact_base_has_it(runs, precision, least):
    (_, wanted, _), (_, found, _) = runs[""], runs[precision]
    assert 1 - 1e-9 > wanted @ found / np.linalg.norm(wanted) / np.linalg.norm(found) > least


@pytest.mark.parametrize("precision", PRECISIONS)
def test_hidden_states_and_loss_are_close(runs, precision):
    (wanted_losses, _, wanted), (losses, _, found) = runs[""], runs[precision]
    assert 0 < relative(found, wanted) < 3 * ERRORS[precision][1]
    assert losses[0] == pytest.approx(wanted_losses[0], rel={"int8": 0.002, "nf4": 0.02}[precision])


@pytest.mark.parametrize("precision, near", [("int8", 0.1), ("nf4", 0.5)])
def test_training_lowers_the_loss_as_the_exact_base_does(runs, precision, near):
    fell, wanted = (losses[0] - losses[-1] for losses, *_ in (runs[precision], runs[""]))
    assert wanted > 0.02
    assert fell == pytest.approx(wanted, rel=near)


@pytest.mark.parametrize("spec", [{"dora": True}, {"init": "pissa"}], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_adapter_that_starts_from_the_base_starts_from_the_quantised_one(precision, spec):
    specs = {"clinical": LoraSpec(4, 8.0, **spec)}
    stack = LoraLinear("q_proj", 2, 192, 24, specs, quantize=precision, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"))
    start_from_base(stack, "clinical")
    kernels = np.asarray(stack.weight(jnp.float32))
    definition, state = nnx.split(stack)
    layer = nnx.merge(definition, jax.tree.map(lambda leaf: leaf[1], state))
    np.testing.assert_allclose(layer(X, ("clinical",), None, 1), X @ kernels[1], rtol=1e-4, atol=1e-4)
    weights = layer.adapters["clinical"]
    if spec.get("dora"):
        np.testing.assert_allclose(weights.magnitude[...], np.linalg.norm(kernels[1], axis=0), rtol=1e-5)
    else:
        u, s, v = np.linalg.svd(kernels[1], full_matrices=False)
        principal = (u[:, :4] * s[:4]) @ v[:4]
        np.testing.assert_allclose(2.0 * weights.a[...] @ weights.b[...], principal, rtol=1e-3, atol=1e-4)
