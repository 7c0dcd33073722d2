"""A frozen linear layer and its named low-rank adapters.

    y = x W + sum over active n of  scale_n * dropout_n(x) A_n B_n        (paper section 1.1, Hu et al. 2021)

A model holds any number of *named* adapters. Which of them enter the forward pass (*active*) is an argument of the
call; which of them receive gradients (*trainable*) is decided by `jaxlora.partition`; neither knows of the other.
The active A's are concatenated along the rank, and the scaled B's likewise, so that two adapters cost two thin
matmuls and not four:  x [A1 | A2] [s1 B1 ; s2 B2].

Parameters are stacked over the layers of the model, `kernel: [layers, in, out]`; inside the scan over layers a module
sees its own layer's slice, `kernel: [in, out]`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """The size of one adapter: A is [in, rank], B is [rank, out], the scale is alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraWeights(nnx.Module):
    """One adapter of one linear layer: `a: [layers, in, rank]` in float32, `b: [layers, rank, out]` zeros.

    A is Kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), as in PEFT.
    """

    def __init__(self, layers: int, features_in: int, features_out: int, rank: int, *, rngs: nnx.Rngs):
        bound = features_in**-0.5
        self.a = nnx.Param(
            jax.random.uniform(rngs.params(), (layers, features_in, rank), jnp.float32, minval=-bound, maxval=bound)
        )
        self.b = nnx.Param(jnp.zeros((layers, rank, features_out), jnp.float32))


class LoraLinear(nnx.Module):
    """A linear layer without bias, `kernel: [layers, in, out]`, and the adapters that target it.

    Args:
      name: the layer's name in the model, e.g. "q_proj"; an adapter applies where its targets hold it.
      specs: every adapter of the model by name.
    """

    def __init__(
        self,
        name: str,
        layers: int,
        features_in: int,
        features_out: int,
        specs: Mapping[str, LoraSpec],
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        here = {n: spec for n, spec in specs.items() if name in spec.targets}
        self.specs = tuple(sorted(here.items()))
        self.kernel = nnx.Param(
            jax.random.normal(rngs.params(), (layers, features_in, features_out), dtype) * features_in**-0.5
        )
        self.adapters = nnx.Dict(
            {n: LoraWeights(layers, features_in, features_out, spec.rank, rngs=rngs) for n, spec in self.specs}
        )

    def __call__(self, x: jax.Array, active: tuple[str, ...] = (), key: jax.Array | None = None) -> jax.Array:
        """Applies the layer to `x: [..., in]` with the adapters named in `active`; gives `[..., out]`.

        Dropout falls on the adapters' input only, each adapter with a mask of its own, and only when a key is given.
        """
        y = x @ self.kernel[...].astype(x.dtype)
        here = [(n, spec) for n, spec in self.specs if n in active]
        if not here:
            return y
        a = [self.adapters[n].a[...].astype(x.dtype) for n, _ in here]
        b = jnp.concatenate([(spec.scale * self.adapters[n].b[...]).astype(x.dtype) for n, spec in here])
        if key is None or not any(spec.dropout for _, spec in here):
            low = x @ jnp.concatenate(a, axis=-1)
        else:
            keys = jax.random.split(key, len(here))
            dropped = [_dropout(x, spec.dropout, k) for (_, spec), k in zip(here, keys, strict=True)]
            low = jnp.concatenate([d @ w for d, w in zip(dropped, a, strict=True)], axis=-1)
        return y + low @ b


def _dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    if rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros_like(x))
