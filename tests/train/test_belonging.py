"""What an adapter of an earlier run has to share with the run that takes it."""

import pytest

from jaxlora.errors import UserError
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train.belonging import load_adapter


def test_an_adapter_fits_however_its_layers_are_named(trained):
    spec = LoraSpec(4, 32.0, targets=("v_proj", "layers.*q_proj"), ranks=((".*", 16),))
    found = load_adapter(str(trained.clinical), "clinical", spec, {})
    assert {path[1] for path in found} == {"q_proj", "v_proj"}


def test_an_adapter_of_another_tokenizer(trained):
    with pytest.raises(UserError, match="was trained on another tokenizer than config.base has; give that one, or --a"):
        load_adapter(str(trained.clinical), "clinical", LoraSpec(16, 32.0), {"tokenizer": "another"})
