"""What cuDNN is told of packed rows, against numpy and a stand-in that keeps to its contract; itself where it is."""

import functools

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlora.data.loader import max_segments
from jaxlora.models import attention_gpu
from jaxlora.models.attention import attend
from jaxlora.models.attention_gpu import attend_cudnn, most_notes, spans

LENGTH = 256


def packed(*rows):
    """Segments of rows; a row is the lengths of its runs, 0 standing for padding where the length is negative."""
    segments = np.zeros((len(rows), LENGTH), np.int32)
    for row, runs in zip(segments, rows, strict=True):
        at = number = 0
        for run in runs:
            number += run > 0
            row[at : at + abs(run)] = number if run > 0 else 0
            at += abs(run)
    return segments


FEW = packed((100, 60, 90, -6), (-30, 226))
MANY = packed((20,) * 12, (256,))


def inputs(segments, dtype=np.float32, heads=4, kv_heads=2, head_dim=16):
    """q, k, v, segments and a cotangent that is zero at padding, which has no attention in common."""
    rng = np.random.default_rng(0)
    shape = (*segments.shape, heads, head_dim)
    q, d_out = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(*shape[:2], kv_heads, head_dim)), dtype) for _ in range(2))
    return q, k, v, segments, jnp.where((segments > 0)[..., None, None], d_out, 0)


def value_and_gradients(attention, q, k, v, segments, d_out):
    @jax.jit
    def run(q, k, v, segments, d_out):
        out, backward = jax.vjp(lambda *x: attention(*x, segments), q, k, v)
        return out, *backward(d_out)

    return run(q, k, v, segments, d_out)


def assert_equal_within_notes(found, wanted, segments, rtol, atol):
    for x, y in zip(found, wanted, strict=True):
        inside = (segments > 0)[..., None, None]
        assert np.all(np.isfinite(x)) and not np.any(np.where(inside, 0, x))
        np.testing.assert_allclose(np.where(inside, x, 0), np.where(inside, y, 0), rtol=rtol, atol=atol)


def test_spans_are_those_that_numpy_finds():
    segments = packed((3, 5, 7), (-4, 2), (-256,), (256,))
    segments[1, 100:103] = 3  # the second note of the row is missing
    lengths, starts = (np.asarray(x) for x in jax.jit(spans, static_argnums=1)(segments, 4))
    assert lengths.dtype == starts.dtype == np.int32 and starts.shape == (4, 5) and np.all(starts[:, -1] == -1)
    for row in range(4):
        for number in range(1, 5):
            at = np.flatnonzero(segments[row] == number)
            wanted = (len(at), at[0]) if len(at) else (-1, -1)
            assert (lengths[row, number - 1], starts[row, number - 1]) == wanted


def test_a_row_may_hold_as_many_notes_as_the_loader_packs():
    for length in (32, 64, 512, 2048, 2050):
        assert most_notes(length) == max_segments(length)
    assert most_notes(16) == 2


def stand_in(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, sliding_window_length):
    """Attention within the spans that cuDNN is given, and what uninitialised memory may hold between them."""
    assert mask_type == cudnn.MaskType.PADDING_CAUSAL and q.shape[2] == k.shape[2] == v.shape[2]
    np.testing.assert_array_equal(q_offsets.shape, (q_seqlen.shape[0], q_seqlen.shape[1] + 1))
    at = jnp.arange(q.shape[1])
    belongs = [
        (at >= starts[:, :-1, None]) & (at < (starts[:, :-1] + lengths)[..., None])
        for starts, lengths in ((q_offsets, q_seqlen), (kv_offsets, kv_seqlen))
    ]
    near = (at[:, None] >= at) & (at[:, None] - at < (sliding_window_length or len(at)))
    mask = jnp.einsum("BMT,BMS->BTS", *(x.astype(np.int32) for x in belongs)).astype(bool) & near
    scores = jnp.where(mask[:, None], scale * jnp.einsum("BTHD,BSHD->BHTS", q, k), -1e30)
    out = jnp.einsum("BHTS,BSHD->BTHD", jax.nn.softmax(scores), v)
    return jnp.where(belongs[0].any(axis=1)[..., None, None], out, jnp.nan)


@pytest.mark.parametrize("segments, window", [(FEW, 0), (MANY, 0), (FEW, 30), (FEW, LENGTH)])
def test_what_is_asked_of_cudnn_is_the_attention_of_xla(monkeypatch, segments, window):
    monkeypatch.setattr(attention_gpu, "dot_product_attention", stand_in)
    given = inputs(segments)
    found = value_and_gradients(functools.partial(attend_cudnn, window=window), *given)
    wanted = value_and_gradients(functools.partial(attend, window=window), *given)
    assert_equal_within_notes(found, wanted, segments, 1e-4, 5e-6)


def test_a_row_of_too_many_notes_is_no_number(monkeypatch):
    monkeypatch.setattr(attention_gpu, "dot_product_attention", stand_in)
    segments = packed((10,) * 25, (256,))
    q, k, v, *_ = inputs(segments)
    out = np.asarray(jax.jit(functools.partial(attend_cudnn, window=0))(q, k, v, segments))
    beyond = segments > most_notes(LENGTH)
    assert np.any(beyond) and np.all(np.isnan(out[beyond])) and np.all(np.isfinite(out[~beyond]))


def test_lowers_to_cudnn_for_cuda(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    q, k, v, segments, d_out = inputs(MANY, jnp.bfloat16, head_dim=128)

    def run(q, k, v):
        return jax.vjp(lambda *x: attend_cudnn(*x, segments, 0), q, k, v)[1](d_out)

    program = jax.jit(run).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    for call in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        assert f"custom_call @{call}(" in program
    for setting in ("PADDING_CAUSAL", r"max_seg_per_batch\22: 8", r"max_seg_per_batch\22: 16"):
        assert setting in program
    assert "x256x256x" not in program


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU of the Hopper generation or later")
@pytest.mark.parametrize("segments, window", [(FEW, 0), (MANY, 0), (FEW, 30)])
def test_on_a_gpu_equals_the_attention_of_xla(segments, window):
    q, k, v, segments, d_out = inputs(segments, jnp.bfloat16, head_dim=64)
    found = value_and_gradients(functools.partial(attend_cudnn, window=window), q, k, v, segments, d_out)
    wanted = value_and_gradients(functools.partial(attend, window=window), q, k, v, segments, d_out)
    found, wanted = ([np.asarray(x, np.float32) for x in values] for values in (found, wanted))
    assert_equal_within_notes(found, wanted, segments, 0.05, 0.05)
