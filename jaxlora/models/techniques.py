"""The techniques an adapter can be of, by name, and their descriptions as JSON data.

A description (`LoraSpec` and its like) is a frozen dataclass. It has `dropout`, `check(layers, where)`, which raises a
`UserError` where it does not fit a model, `form(layers)`, what two descriptions of one trained adapter share, and
`described(**more)`, the line of a config that makes it.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxlora.errors import one_of
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptFamily, PromptSpec, PTuningSpec

Spec = LoraSpec | AdaLoraSpec | Ia3Spec | PromptFamily
TECHNIQUES: dict[str, type[Spec]] = {
    "lora": LoraSpec,
    "adalora": AdaLoraSpec,
    "ia3": Ia3Spec,
    **{spec.technique: spec for spec in (PrefixSpec, PromptSpec, PTuningSpec, AdaptationPromptSpec)},
}


def spec_of(fields: Mapping[str, Any]) -> Spec:
    """Returns an adapter's description from its fields, with lists or tuples; a field left out has its default.

    Args:
      fields: those of the description, and `technique`, a key of `TECHNIQUES`, which a LoRA may lack.

    Raises:
      UserError: there is no such technique.
    """

    def frozen(value):
        return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value

    kind = TECHNIQUES[one_of("technique", fields.get("technique", "lora"), TECHNIQUES)]
    return kind(**{name: frozen(value) for name, value in fields.items() if name != "technique"})


def spec_json(spec: Spec) -> dict[str, Any]:
    """Returns an adapter's description as JSON data, for `spec_of`; a LoRA's names no technique."""
    technique = next(name for name, kind in TECHNIQUES.items() if type(spec) is kind)
    named = {} if technique == "lora" else {"technique": technique}
    return named | json.loads(json.dumps(dataclasses.asdict(spec)))
