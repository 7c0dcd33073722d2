"""Descriptions of the prompt family: through a config and back, checked, compared, and written as a config's line."""

import pytest

from jaxlora import config as made
from jaxlora.errors import UserError
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec, PTuningSpec
from jaxlora.models.techniques import described, spec_json, spec_of

SPECS = {
    "prefix": PrefixSpec(4, projection=True, hidden=8),
    "prompt": PromptSpec(4, init="text"),
    "p_tuning": PTuningSpec(4, encoder="mlp", dropout=0.1),
    "adaptation_prompt": AdaptationPromptSpec(4, 2),
}


@pytest.mark.parametrize("technique", SPECS)
def test_a_config_holds_a_description(technique):
    spec = SPECS[technique]
    fields = {name: value for name, value in spec_json(spec).items() if name != "technique"}
    config = getattr(made, technique)(**fields, workdir="runs/clinical")
    assert config.workdir == "runs/clinical" and config.technique == technique
    assert spec_of({name: value for name, value in config.items() if name != "workdir"}) == spec
    assert spec_of(spec_json(spec)) == spec
    spec.check(2, "config.adapters.clinical")


@pytest.mark.parametrize("technique", SPECS)
def test_its_line_of_a_config_makes_it(technique):
    line = described(SPECS[technique], workdir="runs/clinical")
    config = eval(line, vars(made))
    assert line.startswith(f"{technique}(") and "hidden=256" not in line and config.workdir == "runs/clinical"
    assert spec_of({name: value for name, value in config.items() if name != "workdir"}) == SPECS[technique]


@pytest.mark.parametrize(
    "spec, message",
    [
        (PrefixSpec(0), "virtual_tokens is 0"),
        (PrefixSpec(2, hidden=-1), "hidden is -1"),
        (PromptSpec(2, init="texts"), "init: no 'texts'; did you mean 'text'?"),
        (PromptSpec(2, init="text", text=" "), "text is empty"),
        (PTuningSpec(2, encoder="gru"), "encoder: no 'gru'"),
        (PTuningSpec(2, layers=0), "layers is 0"),
        (PTuningSpec(2, dropout=1.0), "dropout is 1.0"),
        (AdaptationPromptSpec(0, 2), "length is 0"),
        (AdaptationPromptSpec(2, 5), "layers is 5; the base has 4"),
    ],
)
def test_what_does_not_fit_is_named(spec, message):
    with pytest.raises(UserError) as error:
        spec.check(4, "config.adapters.clinical")
    assert str(error.value).startswith("config.adapters.clinical.") and message in str(error.value)


def test_a_trained_adapter_has_one_form_whatever_it_started_from():
    assert PromptSpec(4).form(2) == PromptSpec(4, init="text", text="Other").form(2)
    assert PTuningSpec(4).form(2) == PTuningSpec(4, dropout=0.5).form(2)
    forms = [PrefixSpec(4), PrefixSpec(5), PrefixSpec(4, True), PromptSpec(4), PTuningSpec(4), PTuningSpec(4, "mlp")]
    assert len({spec.form(2) for spec in forms}) == len(forms)


def test_virtual_tokens_of_the_active_adapters_add_up():
    config = made.default()
    config.adapters.clinical, config.adapters.other = made.prefix(3), made.prompt(2)
    config.adapters.beside, config.adapters.downstream = made.adaptation_prompt(7, 1), made.adapter(2, 4)
    config.active = ("clinical", "beside", "downstream")
    assert made.virtual_tokens(config) == 3
    config.active = ("clinical", "other")
    assert made.virtual_tokens(config) == 5
