import types

import pytest

from jaxlora.plan.program import TooLarge
from jaxlora.plan.roofline import Bound
from jaxlora.plan.search import cheapest, fitting, nearest_first
from jaxlora.plan.setting import Estimate, Setting


def _estimate(size, seconds=1.0, **fields):
    return Estimate(
        Setting(**{"fsdp": 1, "remat": "full", "accumulate": 1, "quantize": ""} | fields), size, Bound(seconds, 0, 0)
    )


class _Estimator:
    """The estimates of a few settings."""

    def __init__(self, *estimates):
        self.known = {each.setting: each for each in estimates}

    def of(self, setting):
        return self.known[setting]

    def settings(self, given):
        return (setting for setting in self.known if setting != given)


@pytest.fixture
def settings():
    return (
        _estimate(50, 1.0, remat="none"),
        _estimate(20, 1.5),
        _estimate(12, 1.6, fsdp=2),
        _estimate(6, 1.2, quantize="int8"),
    )


def test_the_fastest_comes_first_and_a_quantised_base_last(settings):
    none, full, cut, int8 = settings
    assert cheapest(_Estimator(*settings), full.setting) == [none, full, cut, int8]


def test_suggestions_change_little(settings):
    none, full, cut, int8 = settings
    assert nearest_first(_Estimator(*settings), none.setting) == [full, cut, int8]
    assert cut.setting.changes(none.setting) == ["--config.mesh.fsdp=2", "--config.remat=full"]


def test_only_what_may_fit_is_compiled(settings):
    none, full, cut, int8 = settings
    larger = _estimate(20, 1.7, fsdp=4)  # by arithmetic no smaller than one that turns out too large
    compiled, needs = [], {full.setting: 40, cut.setting: 24, int8.setting: 9}

    def compile_(setting):
        compiled.append(setting)
        if needs[setting] > 30:
            raise TooLarge(needs[setting], 30)
        return types.SimpleNamespace(total=needs[setting])

    refused = []
    found = list(fitting([none, full, larger, cut, int8], 22, compile_, refused, 9))
    assert compiled == [full.setting, cut.setting, int8.setting]
    assert [(each.estimate, each.needed) for each in refused] == [(full, 40), (cut, 24)]
    assert [estimate for estimate, _ in found] == [int8]


def test_a_search_ends(settings):
    def compile_(setting):
        raise TooLarge(100, 60)

    refused = []
    assert not list(fitting(reversed(sorted(settings, key=lambda each: each.bytes)), 60, compile_, refused, 2))
    assert len(refused) == 2
