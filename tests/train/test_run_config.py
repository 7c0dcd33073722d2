"""The config.json of a run: what is kept of it, what may change in it, and what is refused."""

import json
import shutil

import pytest

from jaxlora.errors import UserError
from jaxlora.train import run_config


def test_the_config_is_kept(trained):
    config = json.loads((trained.downstream / "config.json").read_text())
    assert config["adapters"]["downstream"]["dropout"] == 0.1 and config["active"] == ["clinical", "downstream"]


@pytest.mark.parametrize(
    "field", ["mesh.fsdp", "mesh.rules.embed", "accumulate", "attention.kernel", "keep.last", "wandb"]
)
def test_a_field_that_may_change(trained, field):
    config = run_config.read(trained.clinical)
    *folders, name = field.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    place[name] = "other" if isinstance(place[name], str) else place[name] + 1
    assert run_config.check_same(trained.clinical, config) is None


# The downstream adapter has dropout, and each part of an update draws masks of its own.
@pytest.mark.parametrize("field", ["batch_size", "seed", "dtype", "quantize", "epochs", "learning_rate", "accumulate"])
def test_a_field_that_may_not_change(trained, field):
    config = run_config.read(trained.downstream)
    config[field] = "other" if isinstance(config[field], str) else config[field] * 2 + 1
    with pytest.raises(UserError, match=f"was started with config.{field} = "):
        run_config.check_same(trained.downstream, config)


def test_a_folder_that_is_no_run(small, tmp_path, refused):
    assert f"{tmp_path} has no config.json" in refused("evaluate", f"--workdir={tmp_path}")


def test_a_damaged_config(trained, tmp_path, refused):
    run = shutil.copytree(trained.downstream, tmp_path / "run")
    (run / "config.json").write_text('{"base": ')
    assert f"{run / 'config.json'} is damaged" in refused("evaluate", f"--workdir={run}")


@pytest.mark.parametrize("change", [{"batch_size": "many"}, {"active": 3}, {"data": {"name": "outcome"}}])
def test_a_config_with_a_field_of_another_type(trained, tmp_path, refused, change):
    run = shutil.copytree(trained.downstream, tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | change
    (run / "config.json").write_text(json.dumps(config))
    line = refused("evaluate", f"--workdir={run}")
    field = "data.dir" if "data" in change else next(iter(change))
    assert f"{run / 'config.json'}: {field} is missing or no " in line


def test_a_run_from_before_a_field_existed(trained, tmp_path):
    run = shutil.copytree(trained.downstream, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for field in ("quantize", "accumulate", "attention", "keep", "wandb", "sweep", "search"):
        del config[field]
    del config["mesh"]["rules"]
    (run / "config.json").write_text(json.dumps(config))
    assert trained.run("evaluate", f"--workdir={run}") == 0
    assert json.loads((run / "metrics-test.json").read_text()) == json.loads(
        (trained.downstream / "metrics-test.json").read_text()
    )
