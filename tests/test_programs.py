"""Which runs share a program."""

import pytest

from jaxlora import programs
from jaxlora.config import adapter, default
from jaxlora.rows import set_row
from jaxlora.search.space import with_settings
from jaxlora.train.assemble import model_shape
from jaxlora.train.devices import lay_out
from jaxlora.train.memory import activation_bytes, state_bytes


def test_runs_share_a_program_where_they_differ_in_their_own_fields_alone():
    def found(most, count, **fields):
        given = [{"learning_rate": 0.1 * n, "batch_size": 2 + 2 * (n % 2), **fields} for n in range(count)]
        configs = {str(n): with_settings(default(), own) for n, own in enumerate(given)}
        return [list(program) for program in programs.programs(configs, most, dict.fromkeys(configs, 2))]

    assert found(2, 5) == [["0", "2"], ["4"], ["1", "3"]]
    assert found(2, 3, trainable=("base", "head")) == [["0"], ["2"], ["1"]]
    assert found(0, 3) == [["0"], ["2"], ["1"]]


def test_tasks_seeds_and_sizes_of_a_row_share_a_program_and_rows_do_not():
    configs = {}
    for row in ("lora", "frozen_downstream"):
        for task, seed, rank in (("mor", 0, 8), ("mor", 1, 8), ("los", 0, 2)):
            config = default()
            set_row(config, row)
            config.data.name, config.seed, config.adapters.downstream.rank = task, seed, rank
            configs[f"{row}-{task}-{seed}"] = config
    assert [len(program) for program in programs.programs(configs, 8, dict.fromkeys(configs, 4))] == [3, 3]


def test_what_is_no_lora_over_a_llama_is_trained_alone(small_base, tmp_path):
    config = default()
    config.base = str(small_base)
    config.adapters.clinical = adapter(2, 4)
    assert programs.why_alone(config) == ""
    config.adapters.clinical.technique = "prefix"
    assert "config.adapters.clinical is of technique 'prefix'; the members of a sweep" in programs.why_alone(config)
    config.adapters.clinical.technique = "lora"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    config.base = str(tmp_path)
    assert "config.base is of model_type 'bert', which does not train together" in programs.why_alone(config)


@pytest.mark.parametrize("members, widths", [(0, [1] * 5), (1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (9, [5])])
def test_as_many_share_a_program_as_fit_the_devices(small_base, monkeypatch, members, widths):
    config = default()
    config.base, config.batch_size, config.data.length = str(small_base), 4, 64
    set_row(config, "lora")
    mesh, shape = lay_out(config, 3), model_shape(config)
    needed = sum(state_bytes(config, shape, 3, mesh, config.trainable, members).values())
    needed += activation_bytes(config, shape, mesh, members=members)
    monkeypatch.setattr(programs, "device_limit", lambda _: needed / 0.9 + 1)
    given = {str(seed): with_settings(config, {"seed": seed}) for seed in range(5)}
    assert [len(part) for part in programs.programs(given, 8, dict.fromkeys(given, 3))] == widths
