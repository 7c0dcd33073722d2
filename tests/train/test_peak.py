"""The peak of the devices: from the table where it is stated, else measured."""

import types

import jax
import pytest

from jaxlora.train import peak


def devices(kind, count, platform="tpu"):
    return [types.SimpleNamespace(device_kind=kind, process_index=i // 2, platform=platform) for i in range(count)]


def test_a_slice_has_the_stated_peak_of_its_chips():
    assert peak.peak_of(devices("TPU v5 lite", 8), "bfloat16") == (8 * 197e12, "stated")


@pytest.mark.parametrize(
    ("kind", "dtype", "platform", "times"),
    [("TPU v5 lite", "float32", "tpu", 8), ("Voodoo 2", "bfloat16", "gpu", 8), ("cpu", "bfloat16", "cpu", 4)],
)
def test_what_is_not_stated_is_measured_on_one_device(monkeypatch, kind, dtype, platform, times):
    """Devices of a CPU share its cores, so a host counts once."""
    monkeypatch.setattr(peak, "measured_rate", lambda device, dtype: 2.0)
    assert peak.peak_of(devices(kind, 8, platform), dtype) == (2.0 * times, "measured")


def test_a_product_is_made_larger_until_it_can_be_timed(monkeypatch):
    monkeypatch.setattr(peak, "_seconds", lambda product, x: len(x) ** 3 * 1e-12)
    assert peak.measured_rate.__wrapped__(jax.devices()[0], "float32") == pytest.approx(2e12)


def test_this_machine_has_a_rate():
    assert 1e8 < peak.measured_rate(jax.devices()[0], "float32") < 1e15
