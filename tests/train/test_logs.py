"""What reaches Weights & Biases, which a module of the test stands for, and that nothing does unasked."""

import json
import sys
import types

import pytest

from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.train.logs import RunLog, numbers


class Service(types.ModuleType):
    """Keeps what it is sent."""

    def __init__(self):
        super().__init__("wandb")
        self.opened, self.logged, self.finished = [], [], 0
        self.errors = types.SimpleNamespace(Error=RuntimeError)
        self.Settings = dict

    def init(self, **given):
        self.opened.append(given)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Service())
    return sys.modules["wandb"]


def config(project):
    made = default()
    made.wandb, made.base, made.data.dir = project, "/home/jane.doe/llama", "/home/jane.doe/mimic"
    made.adapters.clinical = adapter(16, 32, workdir="/home/jane.doe/clinical")
    made.trainable = ("clinical",)
    return made


def run(workdir, project, steps):
    log = RunLog(str(workdir), steps[0] - 1, config(project))
    for step in steps:
        log.write(step, {"loss": 0.5 * step})
    log.close()


def test_nothing_is_sent_unasked(service, tmp_path):
    run(tmp_path, "", (1, 2))
    assert not service.opened and not service.logged
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_the_lines_of_the_log_are_sent_and_a_resumed_run_goes_on_there(service, tmp_path):
    run(tmp_path, "notes", (1, 2))
    run(tmp_path, "notes", (3,))
    assert service.logged == [(1, {"loss": 0.5}), (2, {"loss": 1.0}), (3, {"loss": 1.5})]
    first, second = service.opened
    assert first["project"] == "notes" and first["resume"] == "allow" and service.finished == 2
    assert first["id"] and first["id"] == second["id"]


def test_of_the_config_numbers_alone_are_sent(service, tmp_path):
    run(tmp_path, "notes", (1,))
    (opened,) = service.opened
    sent = opened["config"]
    assert sent["adapters.clinical.rank"] == 16 and sent["class_weights"] is True and sent["learning_rate"] == 3e-4
    assert all(isinstance(value, bool | int | float) for value in sent.values())
    assert "jane.doe" not in json.dumps({name: value for name, value in opened.items() if name != "dir"})
    assert opened["settings"]["x_disable_machine_info"] and opened["settings"]["host"] == ""
    assert opened["settings"]["console"] == "off" and not opened["settings"]["save_code"]


def test_every_number_of_a_config_has_its_whole_name():
    assert numbers({"a": {"b": 1, "c": "text", "d": (1, 2)}, "e": 0.5}) == {"a.b": 1, "e": 0.5}


def test_what_the_service_refuses_is_one_line(service, tmp_path):
    def refuse(**given):
        raise RuntimeError("no API key\nTraceback: ...")

    service.init = refuse
    with pytest.raises(UserError, match=r"config.wandb: no API key; log in with `wandb login`") as error:
        run(tmp_path, "notes", (1,))
    assert "\n" not in str(error.value)


def test_without_the_package_the_run_does_not_start(refused, small, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = refused("train", *small.flags("clinical"), "--config.wandb=notes", f"--workdir={tmp_path / 'run'}")
    assert "pip install wandb" in line and not (tmp_path / "run").exists()
