"""(IA)^3: vectors that rescale what the frozen layers compute (Liu et al. 2022), as PEFT does it.

    y = l * (x W + bias)     in a layer whose output is scaled, k_proj and v_proj
    y = (l * x) W + bias     in a feed-forward layer, whose input is scaled, down_proj

Every l starts as ones. The vectors of several active adapters are multiplied. A LoRA on the same layer is added beside
the rescaled frozen product and sees the layer's own input:  y = l * (x W + bias) + s x A B,  and likewise
(l * x) W + bias + s x A B; so neither depends on the order in which they were trained.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlora.errors import UserError
from jaxlora.models.lora_spec import MODULES, LoraSpec, module_names


@dataclasses.dataclass(frozen=True)
class Ia3Spec:
    """Where one (IA)^3 is.

    Attributes:
      targets: patterns of the linear layers it applies to, as a LoRA's.
      feedforward: names of the layers whose input is scaled, and not the output.
    """

    targets: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    feedforward: tuple[str, ...] = ("down_proj",)
    dropout: ClassVar[float] = 0.0

    def applies_to(self, module: str) -> bool:
        """Returns whether the adapter is in the layer of the full name `module`."""
        return LoraSpec(1, 1.0, targets=self.targets).size_of(module) is not None

    def modules(self, layers: int) -> list[str]:
        """Returns the full names of the layers it applies to."""
        return [module for module in module_names(layers) if self.applies_to(module)]

    def scaled_outputs(self, layers: int) -> set[str]:
        """Returns the names of the linear layers whose output is scaled in any block."""
        return {module.split(".")[-1] for module in self.modules(layers)} - set(self.feedforward)

    def form(self, layers: int) -> tuple:
        """Returns what two descriptions of one trained adapter share, however they name its layers."""
        return "ia3", self.modules(layers), set(self.feedforward)

    def check(self, layers: int, where: str) -> None:
        """Checks that the spec fits a model.

        Raises:
          UserError: a pattern that matches no layer, or a feed-forward layer that is not targeted.
        """
        LoraSpec(1, 1.0, targets=self.targets).check(layers, where)
        targeted = {module.split(".")[-1] for module in self.modules(layers)}
        for name in self.feedforward:
            if name not in targeted:
                valid = ", ".join(other for other in MODULES if other in targeted)
                raise UserError(f"{where}.feedforward: {name!r} is none of the targeted layers, {valid}")


class Ia3Weights(nnx.Module):
    """One (IA)^3 of one kind of linear layer: `gain_out: [layers, out]` or `gain_in: [layers, in]`, ones, float32.

    Args:
      here: the layers that it applies to.
      into: whether the input is scaled, and not the output. features: of the side that is.
    """

    def __init__(self, here: tuple[bool, ...], into: bool, features: int):
        gain = nnx.Param(jnp.ones((len(here), features), jnp.float32))
        if into:
            self.gain_in = gain
        else:
            self.gain_out = gain
        self.here = here

    def gain(self, side: str, layer: jax.Array | int) -> jax.Array | None:
        """Returns the vector of layer number `layer` for "gain_in" or "gain_out", ones where the adapter is absent;
        None for the other side."""
        if not hasattr(self, side):
            return None
        vector = getattr(self, side)[...]
        return vector if all(self.here) else jnp.where(jnp.asarray(self.here)[layer], vector, 1.0)
