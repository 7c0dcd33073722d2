"""Searches of real runs: each trial is the run that `train` makes, and a search that was killed ends as one that was
not."""

import json
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread

from jaxlora.data.builders import Prepared
from jaxlora.search import search
from jaxlora.train import run_config

RATES = ("learning_rate", ("log", 1e-3, 1e-1))
RANKS = ("adapters.downstream.rank", (2, 4))


def flags(small, *space, row="lora", **fields):
    given = {"search.space": repr(space), **{name.replace("__", "."): value for name, value in fields.items()}}
    return [*small.flags(row), *(f"--config.{name}={value}" for name, value in given.items())]


def bayes(small):
    return flags(small, RATES, RANKS, search__method="bayes", search__budget=4, search__together=2, epochs=1)


def trials_of(folder):
    return json.loads((folder / "sweep.json").read_text())


def validations(workdir, name="auroc"):
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [line[f"validation/{name}"] for line in lines if f"validation/{name}" in line]


@pytest.fixture(scope="module")
def splits_read():
    """Of the notes of `searched`."""
    return []


@pytest.fixture(scope="module")
def searched(small, splits_read, tmp_path_factory):
    folder, real = tmp_path_factory.mktemp("searched"), Prepared.split

    def split(self, name):
        splits_read.append(name)
        return real(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prepared, "split", split)
        assert small.run("sweep", *bayes(small), f"--workdir={folder}") == 0
    return folder


def test_a_search_says_which_trial_validates_best(small, searched, capsys):
    trials = trials_of(searched)
    assert list(trials) == [f"trial-00{number}" for number in range(4)]
    assert {trial["status"] for trial in trials.values()} == {"complete"}
    scores = {name: trial["score"] for name, trial in trials.items()}
    for name, score in scores.items():
        assert score == pytest.approx(max(validations(searched / name)), abs=1e-6)
    assert len(set(scores.values())) > 1
    found = json.loads((searched / "best.json").read_text())
    assert scores[found["trial"]] == max(scores.values()) == found["AUROC"]
    assert found["settings"] == trials[found["trial"]]["settings"]
    table = [line for line in (searched / "sweep.md").read_text().splitlines() if line.startswith("| ")]
    assert table[0] == "| trial | learning rate | downstream rank | validation AUROC |" and len(table) == 5
    assert table[1].startswith(f"| **{found['trial']}** |") and all("**" not in line for line in table[2:])
    picture = imread(searched / "figures" / "parallel.png")
    assert picture.shape[1] > picture.shape[0] > 300 and picture.std() > 0.01
    assert small.run("sweep", *bayes(small), f"--workdir={searched}") == 0  # it is at its end already
    assert trials_of(searched) == trials
    assert f"jaxlora evaluate --workdir={searched / found['trial']}" in capsys.readouterr().out


def test_a_trial_is_the_run_that_train_makes_of_it(small, searched, stored, tmp_path):
    own = trials_of(searched)["trial-003"]["settings"]
    given = [*small.flags("lora"), "--config.epochs=1", *(f"--config.{field}={value}" for field, value in own.items())]
    assert small.run("train", *given, f"--workdir={tmp_path}") == 0
    assert run_config.read(searched / "trial-003").to_dict() == run_config.read(tmp_path).to_dict()
    np.testing.assert_allclose(validations(searched / "trial-003"), validations(tmp_path), atol=1e-5)
    member, alone = stored(searched / "trial-003")["model"], stored(tmp_path)["model"]
    for leaf, value in alone.items():
        np.testing.assert_allclose(member[leaf], value, rtol=1e-4, atol=1e-5, err_msg=leaf)


@pytest.mark.parametrize("save", [pytest.param(3, marks=pytest.mark.slow), 9])
def test_a_search_that_was_killed_ends_with_the_same_trials(small, searched, patched, tmp_path, save):
    code = f"at_save({save}, lambda: send(signal.SIGKILL))"
    command = ("sweep", *bayes(small), f"--workdir={tmp_path}")
    killed = subprocess.run(patched(code, *command), env=small.environment(), capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    before = trials_of(tmp_path)
    assert any(trial["status"] == "planned" for trial in before.values()) and not (tmp_path / "best.json").exists()
    assert small.run(*command) == 0
    whole, resumed = trials_of(searched), trials_of(tmp_path)
    assert [trial["settings"] for trial in resumed.values()] == [trial["settings"] for trial in whole.values()]
    for name, trial in whole.items():
        assert resumed[name]["score"] == pytest.approx(trial["score"], abs=1e-6)
    one, other = (json.loads((folder / "best.json").read_text())["trial"] for folder in (searched, tmp_path))
    assert one == other


@pytest.mark.slow
def test_sigterm_ends_a_search_that_goes_on(small, patched, tmp_path):
    given = flags(small, RATES, RANKS, search__method="random", search__budget=3, search__together=1, epochs=1)
    command = ("sweep", *given, f"--workdir={tmp_path}")
    stopped = subprocess.run(
        patched("at_update(4, lambda: send(signal.SIGTERM))", *command), env=small.environment(), capture_output=True
    )
    assert stopped.returncode == 0 and "stopped by SIGTERM" in stopped.stderr.decode()
    assert {trial["status"] for trial in trials_of(tmp_path).values()} == {"planned"}
    assert not (tmp_path / "best.json").exists()
    assert small.run(*command) == 0
    assert {trial["status"] for trial in trials_of(tmp_path).values()} == {"complete"}


def test_trials_that_share_no_program_are_trained_as_train_does(small, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "train_members", None)  # nothing here may be trained together
    given = flags(small, ("data.length", (32, 64)), search__method="grid", epochs=1)
    assert small.run("sweep", *given, f"--workdir={tmp_path / 'search'}") == 0
    trials = trials_of(tmp_path / "search")
    assert [trial["settings"] for trial in trials.values()] == [{"data.length": 32}, {"data.length": 64}]
    alone = [*small.flags("lora"), "--config.epochs=1", "--config.data.length=32", f"--workdir={tmp_path / 'alone'}"]
    assert small.run("train", *alone) == 0
    one, other = stored(tmp_path / "search" / "trial-000"), stored(tmp_path / "alone")
    assert [leaf for leaf in other["model"] if one["model"][leaf].tobytes() != other["model"][leaf].tobytes()] == []
    assert trials["trial-000"]["score"] == max(validations(tmp_path / "alone"))


def test_a_trial_that_diverges_is_recorded_and_never_the_best(small, tmp_path):
    given = flags(small, ("learning_rate", (0.01, 1e30)), search__method="grid", epochs=1)
    assert small.run("sweep", *given, f"--workdir={tmp_path}") == 0
    sound, wild = trials_of(tmp_path).values()
    assert sound["status"] == "complete" and sound["settings"] == {"learning_rate": 0.01}
    assert wild["status"] == "diverged" and wild["score"] is None and "lower config.learning_rate" in wild["why"]
    assert json.loads((tmp_path / "best.json").read_text())["trial"] == "trial-000"
    assert (tmp_path / "sweep.md").read_text().count("| diverged |") == 1


def test_a_search_in_which_all_diverge_is_a_mistake(small, refused, tmp_path):
    given = flags(small, ("learning_rate", (1e30,)), search__method="grid", epochs=1)
    assert "diverged; search lower learning rates in a new one" in refused("sweep", *given, f"--workdir={tmp_path}")


def test_a_language_model_is_searched_for_its_perplexity(small, tmp_path):
    given = flags(small, ("learning_rate", (1e-6, 1e-2)), row="clinical", search__method="grid", epochs=1)
    assert small.run("sweep", *given, f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "best.json").read_text())
    least = {name: min(validations(tmp_path / name, "perplexity")) for name in trials_of(tmp_path)}
    assert found["settings"] == {"learning_rate": 1e-2} and least[found["trial"]] == min(least.values())
    assert found["perplexity"] == pytest.approx(min(least.values()), rel=1e-6)


def test_the_test_notes_are_not_read(searched, splits_read):
    assert set(splits_read) == {"train", "validation"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"search__method": "bayse"}, "config.search.method: no 'bayse'; did you mean 'bayes'?"),
        ({"search__method": "random", "search__budget": 0}, "config.search.budget is 0; it must be 1 or more"),
        ({"search__method": "random", "sweep": "(('a', {}),)"}, "config.sweep and config.search.method are both set"),
        ({"search__method": "random", "wandb": "project"}, "config.wandb is set, but Weights & Biases takes one run"),
        ({"search__method": "grid"}, "learning_rate has a range, and a grid needs values"),
    ],
)
def test_a_search_that_cannot_begin(small, refused, tmp_path, fields, message):
    line = refused("sweep", *flags(small, RATES, RANKS, **fields), f"--workdir={tmp_path / 'run'}")
    assert message in line and not (tmp_path / "run").exists()


def test_a_search_goes_on_as_it_was_begun_but_for_its_budget(small, searched, refused, tmp_path):
    changed = [*bayes(small), "--config.search.seed=1", f"--workdir={searched}"]
    assert "was started with config.search.seed = 0, not 1" in refused("sweep", *changed)
    (tmp_path / "sweep.json").write_text('{"slow": {"learning_rate": 0.1}}')
    line = refused("sweep", *bayes(small), f"--workdir={tmp_path}")
    assert "sweep.json is damaged, or of a sweep over config.sweep; use a new workdir" in line


def test_train_refuses_a_config_that_searches(small, refused, tmp_path):
    line = refused("train", *bayes(small), f"--workdir={tmp_path}")
    assert "config.search.method is set, which `train` does not read; run `jaxlora sweep`" in line
