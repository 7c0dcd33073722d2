"""A kernel laid over the devices of a mesh, whether or not they divide its rows and heads."""

import functools
import subprocess
import sys

import jax
import numpy as np

CASES = [  # rows, heads of keys, fsdp, tensor
    (4, 2, 2, 2),
    (4, 1, 2, 2),
    (3, 2, 2, 2),
]


def inputs(rows, kv_heads):
    rng = np.random.default_rng(0)
    q, k, v, d_out = (rng.normal(size=(rows, 16, n, 4)).astype(np.float32) for n in (4, kv_heads, kv_heads, 4))
    return q, k, v, np.repeat([[1, 2]], 8, axis=1).repeat(rows, axis=0), d_out


def value_and_gradients(attention, q, k, v, segments, d_out):
    out, backward = jax.vjp(lambda *x: attention(*x, segments), q, k, v)
    return out, *backward(d_out)


def main():
    """Compares every case with one device; run on four."""
    from jaxlora.models.attention import attend
    from jaxlora.train.mesh import make_mesh, replicated, traced_on

    assert jax.device_count() == 4
    for rows, kv_heads, fsdp, tensor in CASES:
        given = inputs(rows, kv_heads)
        run = functools.partial(value_and_gradients, attend)
        mesh = make_mesh(fsdp, tensor)
        found = jax.jit(traced_on(mesh, run))(*jax.device_put(given, replicated(mesh)))
        wanted = jax.jit(functools.partial(value_and_gradients, attend))(*given)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=str((rows, kv_heads, fsdp, tensor)))


def test_on_four_devices_equals_one(pretended):
    done = subprocess.run([sys.executable, __file__], env=pretended(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
