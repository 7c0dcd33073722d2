"""Splash attention, interpreted on a CPU, against XLA's attention; what it saves and never makes, from its trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlora.models.attention import attend, on_shards
from jaxlora.models.attention_tpu import attend_splash
from jaxlora.train.mesh import make_mesh, traced_on


def inputs(length, heads, kv_heads, head_dim, dtype=np.float32):
    """q, k, v, segments and a cotangent: three notes and padding behind, and a padded front and one note."""
    rng = np.random.default_rng(length)
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=(2, length, n, head_dim)), dtype) for n in (heads, kv_heads, kv_heads, heads)
    )
    at = np.arange(length) / length
    segments = np.stack([np.digitize(at, [0.3, 0.55, 0.9]) + 1, np.where(at < 0.2, 0, 1)])
    return q, k, v, np.where(segments == 4, 0, segments).astype(np.int32), d_out


def value_and_gradients(attention, q, k, v, segments, d_out):
    @jax.jit
    def run(q, k, v, segments, d_out):
        out, backward = jax.vjp(lambda *x: attention(*x, segments), q, k, v)
        return out, *backward(d_out)

    return run(q, k, v, segments, d_out)


# Grouped queries over three blocks; a row that no block divides; a window within a block, and across two of them.
@pytest.mark.parametrize(
    "length, kv_heads, head_dim, window, block",
    [(384, 2, 64, 0, 128), (200, 4, 16, 0, 512), (256, 1, 128, 40, 256), (384, 2, 8, 150, 128)],
)
def test_equals_the_attention_of_xla_with_its_gradients(length, kv_heads, head_dim, window, block):
    given = inputs(length, 4, kv_heads, head_dim)
    splash = functools.partial(attend_splash, window=window, block=block, interpret=True)
    found = value_and_gradients(splash, *given)
    wanted = value_and_gradients(functools.partial(attend, window=window), *given)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=5e-6)


def test_on_a_mesh_bfloat16_stays_bfloat16_and_padding_finite():
    q, k, v, segments, d_out = inputs(256, 2, 1, 64, jnp.bfloat16)
    splash = functools.partial(attend_splash, window=0, block=128, interpret=True)
    attention = traced_on(make_mesh(1, 1), functools.partial(on_shards, splash))
    found = value_and_gradients(attention, q, k, v, segments, d_out)
    wanted = value_and_gradients(attend, *(x.astype(np.float32) for x in (q, k, v)), segments, d_out.astype(np.float32))
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == jnp.bfloat16 and np.all(np.isfinite(x))
        np.testing.assert_allclose(x.astype(np.float32), y, atol=0.05)


def test_a_remat_policy_can_save_what_the_backward_pass_needs(capsys):
    q, k, v, segments, _ = inputs(256, 2, 1, 64)
    for names, wanted in (("q", set()), ("attention", {"f32[2,2,256,64]", "f32[2,2,256]"})):  # output, log-sums
        policy = jax.checkpoint_policies.save_only_these_names(names)
        attention = jax.checkpoint(lambda *x: attend_splash(*x, segments, 0, 128), policy=policy)
        jax.ad_checkpoint.print_saved_residuals(attention, q, k, v)
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[0] for line in lines if "SplashAttentionKernel" in line and line[0] == "f"} == wanted
