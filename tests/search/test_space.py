"""What a search may set, and what is refused in one line."""

import pytest

from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.search.space import Dimension, grid, read_space, with_settings


def config_of(*space):
    config = default()
    config.adapters.downstream = adapter(8, 16)
    config.active, config.trainable = ("downstream",), ("downstream", "head")
    config.search.method, config.search.space = "random", space
    return config


def test_a_space_is_read_in_the_order_of_its_numbers():
    space = read_space(
        config_of(
            ("learning_rate", ("log", 1e-5, 1e-3)),
            ("adapters.downstream.rank", [16, 2, 8]),
            ("warmup", ("uniform", 0, 0.5)),
            ("decay", ("linear", "constant")),
            ("active", ((), ("downstream",))),
        )
    )
    assert space == (
        Dimension("learning_rate", (), 1e-5, 1e-3, True),
        Dimension("adapters.downstream.rank", (2, 8, 16)),
        Dimension("warmup", (), 0.0, 0.5),
        Dimension("decay", ("linear", "constant")),
        Dimension("active", ((), ("downstream",))),
    )
    assert [dimension.ordered for dimension in space] == [True, True, True, False, False]


def test_a_share_and_its_value_are_one_place():
    rate, rank, warmup = Dimension("a", (), 1e-5, 1e-3, True), Dimension("b", (2, 4, 8)), Dimension("c", (), 1.0, 3.0)
    assert rate.at(0.5) == pytest.approx(1e-4) and rate.share(1e-4) == pytest.approx(0.5)
    assert warmup.at(0.25) == 1.5 and warmup.share(1.5) == 0.25
    assert [rank.at(share) for share in (0.0, 0.32, 0.34, 0.99, 1.0)] == [2, 2, 4, 8, 8]
    assert [rank.at(rank.share(value)) for value in rank.values] == [2, 4, 8]


def test_a_grid_is_every_setting_once():
    space = (Dimension("rank", (2, 4)), Dimension("decay", ("linear", "constant")), Dimension("warmup", (0.1,)))
    points = grid(space)
    assert [tuple(point.values()) for point in points] == [
        (2, "linear", 0.1), (2, "constant", 0.1), (4, "linear", 0.1), (4, "constant", 0.1),
    ]  # fmt: skip
    assert list(points[0]) == ["rank", "decay", "warmup"]


def test_a_trial_has_the_config_of_its_own_run():
    config = config_of(("learning_rate", (1e-3, 1e-2)))
    trial = with_settings(config, {"learning_rate": 1e-2, "adapters.downstream.rank": 2})
    wanted = config_of()
    wanted.search, wanted.learning_rate, wanted.adapters.downstream.rank = default().search, 1e-2, 2
    assert trial.to_dict() == wanted.to_dict()
    assert config.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ((), "config.search.space is empty; give pairs such as"),
        (("learning_rate", (1e-3,)), "config.search.space: not pairs of a field and what it can be"),
        ((("learning_rat", (1e-3,)),), "no field 'learning_rat'; did you mean 'learning_rate'?"),
        ((("adapters.clinical.rank", (2,)),), "no field 'adapters.clinical.rank'"),
        ((("learning_rate", ()),), "learning_rate has neither values nor a range"),
        ((("learning_rate", (1e-3, "fast")),), "learning_rate gets 'fast', of another type"),
        ((("learning_rate", (1e-3, 1e-3)),), "learning_rate has a value twice"),
        ((("learning_rate", (1e-3,)), ("learning_rate", (1e-2,))), "config.search.space has learning_rate twice"),
        ((("learning_rate", ("log", 0, 1e-3)),), "give the smaller one first, and positive for 'log'"),
        ((("learning_rate", ("uniform", 1e-2, 1e-3)),), "learning_rate from 0.01 to 0.001; give the smaller one first"),
        ((("adapters.downstream.rank", ("log", 1, 8)),), "adapters.downstream.rank is no float, so it has no range"),
        ((("data.name", ("los", "mor")),), "data.name is the same for all trials"),
        ((("search.seed", (0, 1)),), "search.seed is the same for all trials"),
    ],
)
def test_what_is_no_space(space, message):
    with pytest.raises(UserError) as raised:
        read_space(config_of(*space))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_range_has_no_grid():
    with pytest.raises(UserError, match="learning_rate has a range, and a grid needs values"):
        grid([Dimension("learning_rate", (), 1e-5, 1e-3, True)])
