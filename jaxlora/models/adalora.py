"""AdaLoRA: a LoRA whose rank is spent where it matters (Zhang et al. 2023).

    y = x W + scale * (x P) diag(e) Q,  scale = alpha / (rank + 1e-5)

P and Q take the place of A and B, `e` that of singular values. Every adapter starts with `rank` triplets (a column of
P, an entry of `e`, a row of Q) in each layer; while it is trained, `jaxlora.train.allocation` sets the `e` of the least
important to zero, until `target_rank` of them are left in each layer on average. P, Q and their start, normal with a
deviation of 0.02 and `e` zero, and the scale are PEFT's.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlora.errors import UserError
from jaxlora.models.lora_spec import LoraSize, LoraSpec


@dataclasses.dataclass(frozen=True)
class AdaLoraSpec(LoraSpec):
    """The size of one AdaLoRA, and how its budget falls.

    Attributes:
      rank: of every targeted layer at the start; `alpha`, `dropout`, `targets`, `layers` are as a LoRA's.
      target_rank: of a layer at the end, on average.
      start, end: updates before the budget begins to fall, and updates after it has fallen (PEFT's tinit and tfinal).
      interval: updates from one allocation to the next (deltaT).
      beta1, beta2: of the running means of sensitivity and of its uncertainty.
      orthogonality: the weight of the penalty that keeps P and Q orthogonal.
    """

    rank: int = 12
    alpha: float = 8.0
    target_rank: int = 8
    start: int = 0
    end: int = 0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    def size_of(self, module: str) -> LoraSize | None:
        """Returns the adapter's size in the layer of the full name `module`, None where it does not apply."""
        size = super().size_of(module)
        return size and LoraSize(size.rank, scaled_alpha(self.alpha, size.rank), False)

    def form(self, layers: int) -> tuple:
        """Returns what two descriptions of one trained adapter share, however they name its layers."""
        return "adalora", self.sizes(layers)

    def check(self, layers: int, where: str, *modules) -> None:
        """Checks that the spec fits a model, and that the budget can fall; the arguments are those of `LoraSpec.check`.

        Raises:
          UserError: it does not.
        """
        super().check(layers, where, *modules)
        for field, plain in (("ranks", ()), ("alphas", ()), ("rslora", False), ("dora", False), ("init", "lora")):
            if getattr(self, field) != plain:
                raise UserError(f"{where}.{field} is {getattr(self, field)!r}; an AdaLoRA has none, give {plain!r}")
        if not 1 <= self.target_rank < self.rank:
            raise UserError(f"{where}.target_rank is {self.target_rank}; it must be from 1 to {self.rank - 1}")
        for field, least in (("start", 0), ("end", 0), ("interval", 1), ("orthogonality", 0)):
            if getattr(self, field) < least:
                raise UserError(f"{where}.{field} is {getattr(self, field)}; it must be {least} or more")
        for field in ("beta1", "beta2"):
            if not 0 < getattr(self, field) < 1:
                raise UserError(f"{where}.{field} is {getattr(self, field)}; it must be between 0 and 1")

    def check_updates(self, updates: int, where: str) -> None:
        """Checks that a run of so many updates leaves time for the budget to fall.

        Raises:
          UserError: it does not.
        """
        if self.start >= updates - self.end:
            raise UserError(
                f"{where}: start {self.start} and end {self.end} leave none of the run's {updates} updates for the "
                "budget to fall in; lower them"
            )


def scaled_alpha(alpha: float, rank: int) -> float:
    """Returns the alpha of a LoRA of this rank whose scale is alpha / (rank + 1e-5), PEFT's."""
    return alpha * rank / (rank + 1e-5)


class AdaLoraWeights(nnx.Module):
    """One AdaLoRA of one kind of linear layer: P as `a: [layers, in, rank]`, `e: [layers, rank]`, Q as
    `b: [layers, rank, out]`, float32; all zero in a layer without it.

    Args:
      ranks: the rank in each layer, 0 where the adapter is absent.
    """

    def __init__(self, ranks: tuple[int, ...], features_in: int, features_out: int, *, rngs: nnx.Rngs):
        layers, rank = len(ranks), max(ranks)
        here = np.asarray(ranks)[:, None, None] > 0

        def normal(*shape):
            return nnx.Param(jnp.where(here, 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), 0.0))

        self.a = normal(layers, features_in, rank)
        self.e = nnx.Param(jnp.zeros((layers, rank), jnp.float32))
        self.b = normal(layers, rank, features_out)

    def factors(self, scale: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        """Returns (P, scaled diag(e) Q), `[in, rank]` and `[rank, out]`, as `LoraWeights.factors` does."""
        return self.a[...], scale * self.e[...][:, None] * self.b[...]
