"""How PEFT's directories hold each technique: the name of the technique, its config, its tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxlora.interop import peft_config, peft_kin, peft_prompts
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec
from jaxlora.models.techniques import Spec

if TYPE_CHECKING:
    from jaxlora.interop.peft import Adapter


def turned(value: np.ndarray) -> np.ndarray:
    """A matrix as PyTorch has it, `[in, out]` to `[out, in]`."""
    return value.T


def _row(value: np.ndarray) -> np.ndarray:
    return value[None]


def _column(value: np.ndarray) -> np.ndarray:
    return value[:, None]


def _flat(value: np.ndarray) -> np.ndarray:
    return value.reshape(len(value), -1)


class Form(NamedTuple):
    """How a directory of PEFT holds a technique.

    Attributes:
      peft_type: as adapter_config.json names it.
      read: its description, from (path of the config, its fields, shape of the base).
      fields: its own fields of the config, of an adapter.
      shapes: of its parameters by layer, from (description, shape of the base, fields of the config).
      files: by parameter, the end of the tensor's name and how the tensor lies in the file.
      completed: what is read of a layer as the adapter has it, from (description, its parameters).
      headed: whether PEFT saves a classification head with it.
    """

    peft_type: str
    read: Callable[[Path, dict[str, Any], LlamaConfig], Spec]
    fields: Callable[["Adapter"], dict[str, Any]]
    shapes: Callable[[Spec, LlamaConfig, dict[str, Any]], peft_prompts.Shapes]
    files: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]
    completed: Callable[[Spec, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda spec, here: here
    headed: bool = True


def _lora_shapes(spec: LoraSpec, shape: LlamaConfig, raw: dict[str, Any]) -> peft_prompts.Shapes:
    found = {}
    for module, size in spec.sizes(shape.layers).items():
        features_in, features_out = shape.features(module.split(".")[-1])
        found[module] = {"a": (features_in, size.rank), "b": (size.rank, features_out)}
        if spec.dora:
            found[module]["magnitude"] = (features_out,)
    return found


_TOKENS = (
    peft_prompts.read_tokens,
    lambda x: peft_prompts.tokens_json(x.spec, x.layers, x.weights),
    peft_prompts.tokens_shapes,
    {"table": ("", _flat)},
)
FORMS: dict[type[Spec], Form] = {
    LoraSpec: Form(
        "LORA",
        lambda path, raw, shape: peft_config.read_config(path, raw, shape.layers),
        lambda x: peft_config.to_json(x.spec, x.layers),
        _lora_shapes,
        {
            "a": ("lora_A.weight", turned),
            "b": ("lora_B.weight", turned),
            "magnitude": ("lora_magnitude_vector", turned),
        },
    ),
    AdaLoraSpec: Form(
        "ADALORA",
        peft_kin.read_adalora,
        lambda x: peft_kin.adalora_json(x.spec, x.layers),
        peft_kin.adalora_shapes,
        {"a": ("lora_A", turned), "b": ("lora_B", turned), "e": ("lora_E", _column)},
        peft_kin.completed,
    ),
    Ia3Spec: Form(
        "IA3",
        peft_kin.read_ia3,
        lambda x: peft_kin.ia3_json(x.spec, x.layers),
        peft_kin.ia3_shapes,
        {"gain_in": ("ia3_l", _row), "gain_out": ("ia3_l", _column)},
    ),
    AdaptationPromptSpec: Form(
        "ADAPTION_PROMPT",
        peft_prompts.read_adaptation,
        lambda x: peft_prompts.adaptation_json(x.spec),
        peft_prompts.adaptation_shapes,
        {"prompt": ("adaption_prompt", _row), "gate": ("adaption_gate", _row)},
        headed=False,
    ),
    PrefixSpec: Form("PREFIX_TUNING", *_TOKENS),
    PromptSpec: Form("PROMPT_TUNING", *_TOKENS),
}
READ = {form.peft_type: form for form in FORMS.values()} | {"P_TUNING": Form("P_TUNING", *_TOKENS)}
