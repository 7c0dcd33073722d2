"""What is counted, against batches counted by hand; the clock is turned by the test."""

import types

import numpy as np
import pytest

from jaxlora.config import adapter, default
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.train import peak, throughput
from jaxlora.train.assemble import adapter_specs
from jaxlora.train.flops import costs
from jaxlora.train.mesh import make_mesh
from jaxlora.train.throughput import Throughput

SHAPE = LlamaConfig(vocab=32, embed=16, mlp=24, layers=2, heads=4, kv_heads=2, head_dim=4)
BATCH = np.asarray([3, 2, 1]), 18  # three notes in three rows of six positions


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but for `clock.now += seconds`, and the peak is 1,000 FLOP/s."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(throughput, "peak_of", lambda devices, dtype: peak.Peak(1e3, "stated"))
    return clock


@pytest.fixture
def counting(clock):
    """Makes a counter of a run with one trained adapter: `counting(kind, labels)`."""

    def make(kind="lm", labels=0, remat="none"):
        config = default()
        config.adapters.clinical = adapter(2, 4)
        config.active, config.trainable, config.remat = ("clinical",), ("clinical",), remat
        made = Throughput(config, SHAPE, kind, labels, make_mesh(1, 1))
        return made, costs(SHAPE, adapter_specs(config, 2), ("clinical",), ("clinical",), labels, remat)

    return make


def spend(throughput, clock, **seconds):
    for what, value in seconds.items():
        throughput.enter(what)
        clock.now += value


def test_tokens_and_work_are_over_the_time_of_updates_and_data(counting, clock):
    counter, (model, hardware) = counting(remat="full")
    counter.add(*BATCH)
    spend(counter, clock, data=100, update=100)  # the first update, which compiles
    counter.start()
    for _ in range(2):
        spend(counter, clock, data=1, update=3)
        counter.add(*BATCH)
    spend(counter, clock, validation=20, save=30)
    rates = counter.rates()
    assert (rates["real_tokens_per_second"], rates["padded_tokens_per_second"]) == (2 * 6 / 8, 2 * 18 / 8)
    assert (rates["notes_per_second"], rates["padding"]) == (2 * 3 / 8, pytest.approx(2 / 3))
    pairs = (1 + 4 + 9) / 2
    work = {name: 2 * (cost.token * 6 + cost.pair * pairs) / 8 for name, cost in (("m", model), ("h", hardware))}
    assert rates["model_flops_per_second"] == pytest.approx(work["m"])
    assert (rates["mfu"], rates["hfu"]) == (pytest.approx(work["m"] / 1e3), pytest.approx(work["h"] / 1e3))
    assert rates["hfu"] > rates["mfu"]
    found = {name: rates[f"seconds/{name}"] for name in ("data", "update", "validation", "save")}
    assert found == {"data": 2, "update": 6, "validation": 20, "save": 30}


def test_the_last_line_says_what_the_rates_are(counting, clock):
    counter, (model, hardware) = counting()
    assert counter.line() == ""
    counter.start()
    spend(counter, clock, data=1, update=1)
    counter.add(*BATCH)
    spend(counter, clock, validation=5, save=3)
    mfu, hfu = ((cost.token * 6 + cost.pair * 7) / 2 / 1e3 for cost in (model, hardware))
    assert counter.line() == (
        f"3 real tokens/s (padding 66.7%), MFU {mfu:.1%}, HFU {hfu:.1%} of 1e-09 TFLOP/s (stated), "
        "data wait 10.0%, validation 50.0%, save 30.0%"
    )


@pytest.mark.parametrize(("kind", "places"), [("binary", 3), ("tokens", 6)])
def test_the_head_works_on_notes_or_on_every_token(counting, clock, kind, places):
    counter, (model, _) = counting(kind, 5)
    counter.start()
    spend(counter, clock, update=1)
    counter.add(*BATCH)
    expected = model.token * 6 + model.pair * 7 + model.place * places
    assert model.place and counter.rates()["model_flops_per_second"] == pytest.approx(expected)


def test_kept_features_are_notes_and_no_tokens(counting, clock):
    counter, _ = counting("binary", 2)
    counter.start()
    spend(counter, clock, update=2)
    counter.add(BATCH[0], 0)
    rates = counter.rates()
    assert rates["notes_per_second"] == 1.5 and not {"mfu", "real_tokens_per_second"} & rates.keys()
    assert counter.line() == "1.5 notes/s, data wait 0.0%, validation 0.0%, save 0.0%"
