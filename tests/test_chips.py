import pytest

from jaxlora.chips import CHIPS, parse_slice
from jaxlora.errors import UserError
from jaxlora.plan.roofline import bound


def test_a_slice_is_read():
    v5e = parse_slice("v5e:2x4")
    assert (v5e.name, v5e.chips, v5e.chip.device_gib) == ("v5e:2x4", 8, 15.75)
    assert parse_slice("v5p:4x4x4").chips == 64


@pytest.mark.parametrize(
    "topology, expected",
    [("v5e:2x3", "v5e:2x2, v5e:2x4"), ("v9:2x2", "v5e"), ("v5e", "v5e:16x16"), ("v5p:2x2", "v5p:2x2x1"), ("", "v6e")],
)
def test_an_unknown_slice_is_told_with_those_that_exist(topology, expected):
    with pytest.raises(UserError, match="^--topology: .*" + expected):
        parse_slice(topology)


def test_the_bound_is_the_slowest_of_the_three():
    least = bound(CHIPS["v5e"], 197e12, 819e9 / 2, 200e9 * 3)
    assert (least.compute, least.memory, least.links) == (1.0, 0.5, 3.0)
    assert (least.seconds, least.limit) == (3.0, "links")


def test_a_core_has_its_share_of_the_chip():
    assert bound(CHIPS["v3"], 123e12, 0, 0).compute == 2.0
