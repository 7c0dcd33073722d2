"""The rotary angles of every kind of stretching."""

import jax
import numpy as np
import pytest

from jaxlora.models.rotary import Rope, note_lengths, rotary, rotate

DIM = 8


def frequencies(rope, length=1):
    """The angle of position 1 in a note of `length`."""
    cos, sin = rotary(rope, np.ones((1, 1), np.int32), np.full((1, 1), length), DIM)
    return np.arctan2(sin, cos)[0, 0, 0]


def test_rotation_is_hugging_faces_and_relative():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, DIM)).astype(np.float32)

    def at(x, position):
        rotation = rotary(Rope(500.0), np.full((1, 1), position), np.full((1, 1), 9), DIM)
        return np.asarray(rotate(x[None, None, None], *rotation))[0, 0, 0]

    np.testing.assert_array_equal(at(q, 0), q)
    angle = 7 * 500.0 ** (-np.arange(0, DIM, 2) / DIM)
    first, second = q[:4], q[4:]
    turned = [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    np.testing.assert_allclose(at(q, 7), np.concatenate(turned), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at(q, 3) @ at(k, 8), at(q, 13) @ at(k, 18), rtol=1e-4)


def test_linear_scaling_divides_every_frequency():
    np.testing.assert_allclose(frequencies(Rope(kind="linear", factor=4.0)), frequencies(Rope()) / 4, rtol=1e-6)


def test_llama3_keeps_the_short_waves_and_divides_the_long_ones():
    # Frequencies 1, 0.1, 0.01 and 0.001; waves of 6.3, 63, 628 and 6283 positions.
    rope = Rope(kind="llama3", factor=8.0, context=400, low=1.0, high=20.0)
    smooth = (400 / (20 * np.pi) - 1.0) / 19.0
    wanted = [1.0, 0.1 * (smooth + (1 - smooth) / 8), 0.01 / 8, 0.001 / 8]
    np.testing.assert_allclose(frequencies(rope), wanted, rtol=1e-5)


@pytest.mark.parametrize("length, grown", [(1, 1.0), (16, 1.0), (32, 3.0), (64, 7.0)])
def test_dynamic_scaling_grows_theta_with_a_note_longer_than_the_context(length, grown):
    rope = Rope(kind="dynamic", factor=2.0, context=16)
    wanted = frequencies(Rope(10000.0 * grown ** (DIM / (DIM - 2))))
    np.testing.assert_allclose(frequencies(rope, length), wanted, rtol=1e-5)


def test_each_position_knows_the_length_of_its_note():
    segments = np.asarray([[1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 1, 1]])
    positions = np.asarray([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]])
    lengths = np.asarray(jax.jit(note_lengths)(positions, segments))
    np.testing.assert_array_equal(lengths[segments > 0], [3, 3, 3, 2, 2, 4, 4, 4, 4])
