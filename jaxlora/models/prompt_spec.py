"""What an adapter of the prompt family is: prefix tuning, prompt tuning, P-tuning and the adaptation prompt.

All but the last put *virtual tokens* in front of every note: places of its row that hold what was learned in place of
a word. `jaxlora.models.prompts` computes them.
"""

import dataclasses
from typing import ClassVar

from jaxlora.errors import UserError, one_of


class _Described:
    """What these descriptions share."""

    technique: ClassVar[str]
    dropout: ClassVar[float] = 0.0
    virtual_tokens: ClassVar[int] = 0
    # What an adapter started from, or is trained with, and does not show when it is done.
    _passing: ClassVar[tuple[str, ...]] = ()

    def form(self, layers: int) -> tuple:
        """Returns what two descriptions of one trained adapter share."""
        fields = [field.name for field in dataclasses.fields(self) if field.name not in self._passing]
        return self.technique, *(getattr(self, name) for name in fields)

    def _check_sizes(self, where: str, **least: int) -> None:
        for field, lowest in least.items():
            if getattr(self, field) < lowest:
                raise UserError(f"{where}.{field} is {getattr(self, field)}; it must be {lowest} or more")


@dataclasses.dataclass(frozen=True)
class PrefixSpec(_Described):
    """Keys and values of virtual tokens in every layer (Li and Liang 2021, as PEFT has it).

    Attributes:
      virtual_tokens: in front of every note.
      projection: keys and values come from a table as narrow as one layer's keys, by a layer of `hidden` tanh units.
      hidden: 0 is as many as a layer's keys are wide.
    """

    technique: ClassVar[str] = "prefix"
    virtual_tokens: int
    projection: bool = False
    hidden: int = 0

    def check(self, layers: int, where: str) -> None:
        """Raises UserError where a size is out of range."""
        self._check_sizes(where, virtual_tokens=1, hidden=0)


@dataclasses.dataclass(frozen=True)
class PromptSpec(_Described):
    """Embeddings of virtual tokens (prompt tuning, Lester et al. 2021).

    Attributes:
      virtual_tokens: in front of every note.
      init: "random", or "text", which starts from the embeddings of `text`, again and again where it is too short.
    """

    technique: ClassVar[str] = "prompt"
    _passing: ClassVar[tuple[str, ...]] = ("init", "text")
    virtual_tokens: int
    init: str = "random"
    text: str = "Finish this clinical note: "

    def check(self, layers: int, where: str) -> None:
        """Raises UserError where a field is out of range."""
        self._check_sizes(where, virtual_tokens=1)
        one_of(f"{where}.init", self.init, ("random", "text"))
        if self.init == "text" and not self.text.strip():
            raise UserError(f"{where}.text is empty; give a text, or init='random'")


@dataclasses.dataclass(frozen=True)
class PTuningSpec(_Described):
    """Embeddings of virtual tokens that a small network makes of a table (P-tuning, Liu et al. 2021).

    Attributes:
      virtual_tokens: in front of every note.
      encoder: "mlp", three linear layers with ReLU; or "lstm", one of both directions and two linear layers.
      hidden: units of a layer, for the LSTM of each direction.
      layers, dropout: of the LSTM; dropout falls between its layers.
    """

    technique: ClassVar[str] = "p_tuning"
    _passing: ClassVar[tuple[str, ...]] = ("dropout",)
    virtual_tokens: int
    encoder: str = "lstm"
    hidden: int = 256
    layers: int = 4
    dropout: float = 0.0

    def check(self, layers: int, where: str) -> None:
        """Raises UserError where a field is out of range."""
        self._check_sizes(where, virtual_tokens=1, hidden=1, layers=1)
        one_of(f"{where}.encoder", self.encoder, ("mlp", "lstm"))
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"{where}.dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class AdaptationPromptSpec(_Described):
    """Learned vectors that the topmost layers attend to beside the note, behind a gate (LLaMA-Adapter, Zhang et al.
    2023).

    Attributes:
      length: vectors of each layer. layers: how many, from the top.
    """

    technique: ClassVar[str] = "adaptation_prompt"
    length: int
    layers: int

    def check(self, layers: int, where: str) -> None:
        """Raises UserError where a size is out of range."""
        self._check_sizes(where, length=1, layers=1)
        if self.layers > layers:
            raise UserError(f"{where}.layers is {self.layers}; the base has {layers}")


PromptFamily = PrefixSpec | PromptSpec | PTuningSpec | AdaptationPromptSpec
