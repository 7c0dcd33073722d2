"""The techniques an adapter can be of, by name, and their descriptions as JSON data.

A description (`LoraSpec` and its like) is a frozen dataclass. It has `dropout`, `check(layers, where)`, which raises a
`UserError` where it does not fit a model, and `form(layers)`, what two descriptions of one trained adapter share.
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
    technique = _technique_of(spec)
    named = {} if technique == "lora" else {"technique": technique}
    return named | json.loads(json.dumps(dataclasses.asdict(spec)))


def described(spec: Spec, **more: str) -> str:
    """Returns the adapter as a line of a config has it, without what is usual.

    Args:
      more: fields of the line beside those of the description.
    """
    fields = {field.name: (getattr(spec, field.name), field.default) for field in dataclasses.fields(spec)}
    given = {name: value for name, (value, usual) in fields.items() if value != usual} | more
    technique = _technique_of(spec)
    maker = "adapter" if technique == "lora" else technique
    return f"{maker}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _technique_of(spec: Spec) -> str:
    return next(name for name, kind in TECHNIQUES.items() if type(spec) is kind)
