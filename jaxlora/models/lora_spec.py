"""What an adapter is: its size in every linear layer of the model.

A layer is named as Hugging Face names it, `model.layers.3.self_attn.q_proj` in a LLaMA and
`bert.encoder.layer.3.attention.self.query` in a BERT. A *pattern* is the end of such a name
("q_proj", "self_attn.q_proj") or a regular expression for one (".*layers.[0-3].mlp.*"): it matches where
`(.*\\.)?(pattern)` matches the whole name, the rule of PEFT's rank and alpha patterns.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

from jaxlora.errors import UserError

MODULES = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
BERT_MODULES = {
    **{name: f"attention.self.{name}" for name in ("query", "key", "value")},
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


def module_name(name: str, layer: int) -> str:
    """Returns the full name of a linear layer, e.g. `model.layers.3.self_attn.q_proj`."""
    if name in BERT_MODULES:
        return f"bert.encoder.layer.{layer}.{BERT_MODULES[name]}"
    return f"model.layers.{layer}.{MODULES[name]}"


def module_names(layers: int, modules: Iterable[str] = tuple(MODULES)) -> list[str]:
    """Returns the full names of every linear layer of a model, whose blocks have those named in `modules`."""
    return [module_name(name, i) for i in range(layers) for name in modules]


def matches(pattern: str, module: str) -> bool:
    """Returns whether `pattern` matches the full name `module`."""
    return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None


@dataclasses.dataclass(frozen=True)
class LoraSize:
    """An adapter's size in one linear layer."""

    rank: int
    alpha: float
    rslora: bool

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """The size of one adapter: A is [in, rank], B is [rank, out].

    Attributes:
      rank, alpha: in every targeted layer, but for those that `ranks` and `alphas` name.
      dropout: on the adapter's input.
      targets: patterns of the linear layers it applies to; "all-linear" is all of a block.
      layers: the layers it applies to, from 0; () is all.
      ranks, alphas: (pattern, value) pairs; the first that matches holds.
      rslora: the scale is alpha / sqrt(rank), and not alpha / rank.
      dora: the weight is split into magnitude and direction.
      init: "lora" (A random, B zero), "pissa", or "pissa_niter_N" (see `lora.start_from_base`).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    layers: tuple[int, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    rslora: bool = False
    dora: bool = False
    init: str = "lora"

    def size_of(self, module: str) -> LoraSize | None:
        """Returns the adapter's size in the layer of the full name `module`, None where it does not apply."""
        if self.layers and not any(f".{layer}." in module for layer in self.layers):
            return None
        if not any(target == "all-linear" or matches(target, module) for target in self.targets):
            return None
        rank = next((value for pattern, value in self.ranks if matches(pattern, module)), self.rank)
        alpha = next((value for pattern, value in self.alphas if matches(pattern, module)), self.alpha)
        return LoraSize(rank, alpha, self.rslora)

    def sizes(self, layers: int, modules: Iterable[str] = tuple(MODULES)) -> dict[str, LoraSize]:
        """Returns the adapter's size by full name, where it applies; the arguments are those of `module_names`."""
        found = {module: self.size_of(module) for module in module_names(layers, modules)}
        return {module: size for module, size in found.items() if size}

    def form(self, layers: int) -> tuple:
        """Returns what two descriptions of one trained adapter share, however they name its layers."""
        return self.sizes(layers), self.dora, self.init != "lora"

    def check(self, layers: int, where: str, modules: Iterable[str] = tuple(MODULES)) -> None:
        """Checks that the spec fits a model.

        Args:
          layers: of the model. where: what the error begins with, e.g. "config.adapters.clinical".
          modules: the linear layers of its blocks.

        Raises:
          UserError: a size out of range, an `init` that does not exist, or a pattern that matches no layer.
        """
        for field, pairs, kind in (("ranks", self.ranks, int), ("alphas", self.alphas, int | float)):
            for pair in pairs:
                if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], kind)):
                    raise UserError(f"{where}.{field}: {pair!r} is no (pattern, number); give (('q_proj', 4),)")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"{where}.dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.init not in ("lora", "pissa") and not re.fullmatch(r"pissa_niter_\d+", self.init):
            raise UserError(f"{where}.init is {self.init!r}; give 'lora', 'pissa' or 'pissa_niter_16'")
        for layer in self.layers:
            if not 0 <= layer < layers:
                raise UserError(f"{where}.layers: there is no layer {layer}; the model has 0 to {layers - 1}")
        names = module_names(layers, modules)
        for target in self.targets:
            if target != "all-linear":
                _check_matches(f"{where}.targets", target, names)
        targeted = self.sizes(layers, modules)
        if not targeted:
            raise UserError(f"{where}.targets is empty; give some of {_endings(names)}")
        for field, pairs in (("ranks", self.ranks), ("alphas", self.alphas)):
            for pattern, _ in pairs:
                _check_matches(f"{where}.{field}", pattern, targeted)
        for module, size in targeted.items():
            if size.rank < 1:
                field = "rank" if size.rank == self.rank else "ranks"
                raise UserError(f"{where}.{field} is {size.rank} in {module}; it must be 1 or more")


def _check_matches(field: str, pattern: str, modules: Iterable[str]) -> None:
    try:
        found = any(matches(pattern, module) for module in modules)
    except re.error as error:
        raise UserError(f"{field}: {pattern!r} is no regular expression: {error}") from None
    if not found:
        hint = "; give a tuple of names" if "," in pattern else ""
        raise UserError(
            f"{field}: {pattern!r} matches no layer{hint}; valid are {_endings(modules)}, all-linear, or a regular "
            f"expression for names such as {next(iter(modules))}"
        )


def _endings(modules: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(module.split(".")[-1] for module in modules))
