"""What is checked of a config before anything is read."""

import pytest

from jaxlora.checks import check_fields
from jaxlora.config import default
from jaxlora.errors import UserError


@pytest.mark.parametrize("change", [{"wandb": None}, {"epochs": None}, {"keep": {"last": 1}}])
def test_a_config_that_lacks_a_value(change):
    config = default()
    config.base, config.data.dir, config.data.name = "base", "data", "name"
    check_fields(config)
    with config.unlocked():
        for field, value in change.items():
            config[field] = value
    with pytest.raises(UserError, match=r"^config\.(wandb|epochs|keep\.best) is missing or no "):
        check_fields(config)
