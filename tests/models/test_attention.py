"""Grouped-query attention over packed rows, against the dense attention of jax.nn; which kernel computes it where."""

import functools
import types

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import softmax

from jaxlora import partition
from jaxlora.config import default
from jaxlora.errors import UserError
from jaxlora.models.attention import attend, attend_cached, choose
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train import assemble
from jaxlora.train.mesh import make_mesh
from jaxlora.train.objective import Objective

HEADS, KV_HEADS, DIM = 4, 2, 8


def inputs(length: int):
    """q, k, v and the segments of two rows: three notes and padding behind, and a padded front and one note."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=(2, length, n, DIM)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    at = np.arange(length) / length
    segments = np.stack([np.digitize(at, [0.3, 0.55, 0.9]) + 1, np.where(at < 0.2, 0, 1)])
    return q, k, v, np.where(segments == 4, 0, segments)


def mask_of(segments, window=0):
    near = np.tril(np.ones(segments.shape[1:] * 2, bool))
    near = near & ~np.tril(near, -window) if window else near
    return near & (segments[:, :, None] == segments[:, None])


def dense(q, k, v, segments, d_out, window=0):
    """Softmax over the whole masked square and its gradients, in float64."""
    q, k, v, d_out = (x.astype(np.float64) for x in (q, k, v, d_out))
    group = HEADS // KV_HEADS
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.where(mask_of(segments, window)[:, None], np.einsum("bthd,bshd->bhts", q, k) * DIM**-0.5, -np.inf)
    weights = softmax(scores, axis=-1)
    d_weights = np.einsum("bthd,bshd->bhts", d_out, v)
    d_scores = weights * (d_weights - np.sum(weights * d_weights, axis=-1, keepdims=True)) * DIM**-0.5
    d_q, d_k = np.einsum("bhts,bshd->bthd", d_scores, k), np.einsum("bhts,bthd->bshd", d_scores, q)
    d_v = np.einsum("bhts,bthd->bshd", weights, d_out)
    d_k, d_v = (x.reshape(*x.shape[:2], KV_HEADS, group, DIM).sum(axis=3) for x in (d_k, d_v))
    return np.einsum("bhts,bshd->bthd", weights, v), (d_q, d_k, d_v)


def assert_close(found, wanted):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnames="window")
def value_and_gradients(q, k, v, segments, d_out, window=0):
    out, backward = jax.vjp(lambda *qkv: attend(*qkv, segments, window), q, k, v)
    return out, backward(d_out)


# One block, whole or not; two; four of more than 256.
@pytest.mark.parametrize("length", [256, 200, 300, 1100])
def test_equals_dense_attention_with_its_gradients(length):
    q, k, v, segments = inputs(length)
    d_out = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
    assert_close(value_and_gradients(q, k, v, segments, d_out), dense(q, k, v, segments, d_out))


# The window is within a block, a block, across blocks, and longer than the row.
@pytest.mark.parametrize("length, window", [(200, 1), (200, 16), (600, 256), (1100, 300), (200, 500)])
def test_a_sliding_window_equals_dense_attention_with_its_gradients(length, window):
    q, k, v, segments = inputs(length)
    d_out = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)
    found = value_and_gradients(q, k, v, segments, d_out, window)
    assert_close(found, dense(q, k, v, segments, d_out, window))


def test_cached_attention_of_the_last_position_is_its_attention():
    q, k, v, _ = inputs(60)
    segments = np.ones((2, 60), np.int64)
    whole = value_and_gradients(q, k, v, segments, q)[0]
    visible = np.broadcast_to(np.arange(64) < 60, (2, 64))
    k, v = (np.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0)), constant_values=1e6) for x in (k, v))
    np.testing.assert_allclose(attend_cached(q[:, -1:], k, v, visible), whole[:, -1:], rtol=1e-4, atol=1e-5)


def test_equals_the_attention_of_jax_nn_with_its_automatic_gradients():
    q, k, v, segments = inputs(40)
    d_out = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)

    @jax.jit
    def automatic(*qkv):
        mask = mask_of(segments)[:, None]
        out, backward = jax.vjp(lambda *x: jax.nn.dot_product_attention(*x, mask=mask), *qkv)
        return out, backward(d_out)

    assert_close(value_and_gradients(q, k, v, segments, d_out), automatic(q, k, v))


def test_no_bit_leaks_across_segments_or_from_the_future():
    q, k, v, segments = inputs(200)
    before, second, last = np.asarray(value_and_gradients(q, k, v, segments, q)[0]), segments[0] == 2, 160
    k[0, second], v[0, second] = 30.0, -1e6  # another note
    k[0, last:], v[0, last:] = -30.0, 1e6  # the rest of the third note, and the padding
    after = np.asarray(value_and_gradients(q, k, v, segments, q)[0])
    same = ((segments[0] == 1) | (segments[0] == 3)) & (np.arange(200) < last)
    np.testing.assert_array_equal(after[0, same], before[0, same])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.all(after[0, second] != before[0, second])


def test_gradients_do_not_leak_across_segments():
    q, k, v, segments = inputs(200)
    d_out = np.broadcast_to((segments == 2)[..., None, None], q.shape).astype(np.float32)
    _, gradients = value_and_gradients(q, k, v, segments, d_out)
    for gradient in gradients:
        assert not np.any(gradient[segments != 2]) and np.any(gradient[segments == 2])


def test_padding_is_finite_with_its_gradients():
    q, k, v, _ = inputs(200)
    out, gradients = value_and_gradients(1e3 * q, k, v, np.zeros((2, 200), np.int64), q)
    assert all(np.all(np.isfinite(x)) for x in (out, *gradients))


def test_bfloat16_stays_bfloat16_and_close():
    q, k, v, segments = inputs(200)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out, gradients = value_and_gradients(*half, segments, half[0])
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype("bfloat16")}
    expected, _ = value_and_gradients(q, k, v, segments, q)
    np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.05)


def device(kind: str, platform: str) -> jax.sharding.AbstractDevice:
    return jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)


CPU = device("cpu", "cpu")
V2, V3, V4, V5E = (device(f"TPU {name}", "tpu") for name in ("v2", "v3", "v4", "v5 lite"))
GPU = device("NVIDIA H100 80GB HBM3", "gpu")


@pytest.fixture
def capability(monkeypatch):
    """The compute capability that the GPU says it has, in a list of one."""
    found = ["9.0"]
    monkeypatch.setattr(jax, "local_devices", lambda backend: [types.SimpleNamespace(compute_capability=found[0])])
    return found


def test_auto_takes_the_kernel_of_the_device_where_it_runs(capability):
    for of, dtype, head_dim, wanted in [
        (CPU, "bfloat16", 128, "xla"),
        (V4, "bfloat16", 128, "splash"),
        (V5E, "float32", 64, "splash"),
        (V2, "bfloat16", 128, "xla"),
        (V3, "float32", 128, "xla"),
        (GPU, "bfloat16", 128, "cudnn"),
        (GPU, "float32", 128, "xla"),
        (GPU, "bfloat16", 100, "xla"),
    ]:
        assert choose("auto", 512, of, head_dim, dtype) == wanted
        assert choose("xla", 512, of, head_dim, dtype) == "xla"
    assert choose("splash", 2048, device("TPU v6 lite", "tpu"), 128, "bfloat16") == "splash"
    for older in ("8.0", "gfx942"):
        capability[0] = older
        assert choose("auto", 512, GPU, 128, "bfloat16") == "xla"
    capability[0] = "10.0"
    assert choose("cudnn", 512, GPU, 128, "bfloat16") == "cudnn"


@pytest.mark.parametrize(
    "of, kernel, block, head_dim, dtype, message",
    [
        (CPU, "splash", 512, 128, "bfloat16", "config.attention.kernel is 'splash', which needs a TPU v4 or later"),
        (V3, "splash", 512, 128, "bfloat16", "not TPU v3; give 'auto' or 'xla'"),
        (V5E, "cudnn", 512, 128, "bfloat16", "an NVIDIA GPU of the Hopper generation or later, not TPU v5 lite"),
        (GPU, "cudnn", 512, 128, "float32", "which needs config.dtype 'bfloat16', not 'float32'"),
        (GPU, "cudnn", 512, 100, "bfloat16", "this base's are 100 wide"),
        (V5E, "splosh", 512, 128, "bfloat16", "config.attention.kernel: no 'splosh'; did you mean 'splash'?"),
        (V5E, "splash", 200, 128, "bfloat16", "config.attention.block is 200; give a multiple of 128"),
        (V5E, "auto", 2048, 128, "bfloat16", "config.attention.block is 2048; on TPU v5 lite give at most 1024"),
        (CPU, "auto", 0, 128, "bfloat16", "config.attention.block is 0; give a multiple of 128"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(capability, of, kernel, block, head_dim, dtype, message):
    with pytest.raises(UserError, match=message):
        choose(kernel, block, of, head_dim, dtype)


def test_a_config_is_refused_before_its_base_is_loaded_or_reaches_the_model(small_base, monkeypatch):
    config = default()
    config.base = str(small_base)
    config.attention.kernel, config.attention.block = "cudnn", 256
    monkeypatch.setattr(assemble, "load_base", lambda *arguments: pytest.fail("the base was loaded"))
    with pytest.raises(UserError, match="config.attention.kernel is 'cudnn'"):
        assemble.assemble(config, 0, make_mesh(1, 1))
    monkeypatch.undo()
    config.attention.kernel = "xla"
    shape = assemble.assemble(config, 0, make_mesh(1, 1)).config
    assert (shape.attention, shape.attention_block) == ("xla", 256)


def equations(jaxpr):
    """Every equation of a program but those inside a Pallas kernel, which sees blocks."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                yield from equations(inner) if hasattr(inner, "eqns") else ()


def squares(program, length) -> set[tuple[int, ...]]:
    """The shapes of a program that are as large as length by length."""
    shapes = {tuple(getattr(x.aval, "shape", ())) for e in equations(program.jaxpr) for x in (*e.invars, *e.outvars)}
    return {shape for shape in shapes if shape.count(length) > 1}


# All of a step's update is looked through, the loss and the scan over layers too.
@pytest.mark.parametrize("of, call", [(V5E, "pallas_call"), (GPU, "dot_product_attention_fwd"), (CPU, None)])
def test_an_update_makes_no_square_of_length(capability, monkeypatch, random_llama, of, call):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    specs, length = {"clinical": LoraSpec(2, 2.0)}, 256
    model = random_llama(specs, heads=2, kv_heads=1, head_dim=8, dtype="bfloat16", remat="full", window=200)
    definition, params, frozen = partition.split(model, ("adapter/clinical",))
    objective = Objective("lm", ("clinical",))
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"), abstract_device=of)
    batch = {name: jnp.ones((2, length), jnp.int32) for name in ("tokens", "segments", "positions")}
    with jax.sharding.use_abstract_mesh(mesh):
        loss_and_gradients = jax.value_and_grad(lambda p: objective.loss(nnx.merge(definition, p, frozen), batch))
        program = jax.make_jaxpr(loss_and_gradients)(params)
    calls = [e for e in equations(program.jaxpr) if call and e.primitive.name.startswith(call)]
    assert bool(calls) == bool(call)
    assert not squares(program, length)
    x = jnp.ones((2, length, 1, 8))
    assert squares(jax.make_jaxpr(lambda x: jax.nn.dot_product_attention(x, x, x))(x), length)  # they are found
