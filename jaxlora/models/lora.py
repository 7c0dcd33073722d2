"""A frozen linear layer and its named adapters: low-rank ones, and vectors that rescale it.

    y = g * x W + bias + sum over active n of  f_n * scale_n * dropout_n(x) A_n B_n        (Hu et al. 2021)

A model holds any number of *named* adapters. Which of them enter the forward pass (*active*) is an argument of the
call; which of them receive gradients (*trainable*) is decided by `jaxlora.partition`; neither knows of the other.
The active A's are concatenated along the rank, and the scaled B's likewise, so that two adapters cost two thin
matmuls and not four:  x [A1 | A2] [s1 B1 ; s2 B2].

The family on this one path:
  LoRA    f = g = 1, scale = alpha / rank
  rsLoRA  scale = alpha / sqrt(rank)                                                        (Kalajdzievski 2023)
  PiSSA   A and B start as the principal part of W, and what they started as is subtracted, so that W need not change:
          [A | A0] [s B ; -s B0], A0 and B0 frozen                                          (Meng et al. 2024)
  DoRA    f = magnitude / |W + s A B|, each column by its norm, and g = 1 + sum of (f - 1)    (Liu et al. 2024)
          Dropout falls on the low-rank path alone; PEFT, in training, drops the x of (f - 1) x W too.
  AdaLoRA A and diag(e) B, of which training zeroes entries of e (`models/adalora.py`)        (Zhang et al. 2023)
  (IA)^3  no A or B: a vector on x or on x W + bias, before the others are added (`models/ia3.py`) (Liu et al. 2022)

Parameters are stacked over the layers of the model, `kernel: [layers, in, out]`; inside the scan over layers a module
sees its own layer's slice, `kernel: [in, out]`. Where layers differ in rank, A and B are as wide as the widest and
zero beyond a layer's own rank; a column of zeros in both has no gradient, so it stays zero.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlora.errors import UserError
from jaxlora.models.adalora import AdaLoraSpec, AdaLoraWeights
from jaxlora.models.heads import dropout
from jaxlora.models.ia3 import Ia3Spec, Ia3Weights
from jaxlora.models.lora_spec import LoraSpec, module_name
from jaxlora.models.quantized import QuantizedKernel

# The mesh axes of a kernel when it is used: its inputs or its outputs over `tensor`, whole otherwise.
_TENSOR = {name: (None, "tensor") for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")}
_TENSOR |= {name: ("tensor", None) for name in ("o_proj", "down_proj")}


class LoraWeights(nnx.Module):
    """One adapter of one kind of linear layer: `a: [layers, in, rank]` in float32, `b: [layers, rank, out]` zeros,
    with DoRA `magnitude: [layers, out]`, with PiSSA `initial`, the a and b it started from. Where several runs are one
    program (`jaxlora.train.together`), `dropout: [layers]` is the rate of one of them.

    A is Kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), as in PEFT. What depends on the base's
    weights is set by `start_from_base`.

    Args:
      ranks: the rank in each layer, 0 where the adapter is absent.
    """

    def __init__(self, ranks: tuple[int, ...], features_in: int, features_out: int, spec: LoraSpec, *, rngs: nnx.Rngs):
        shape, bound = (len(ranks), features_in, max(ranks)), features_in**-0.5
        a = jax.random.uniform(rngs.params(), shape, jnp.float32, minval=-bound, maxval=bound)
        self.a = nnx.Param(jnp.where(_columns(ranks)[:, None], a, 0.0) if len(set(ranks)) > 1 else a)
        self.b = nnx.Param(jnp.zeros((len(ranks), max(ranks), features_out), jnp.float32))
        if spec.dora:
            self.magnitude = nnx.Param(jnp.ones((len(ranks), features_out), jnp.float32))
        if spec.init != "lora":
            self.initial = nnx.Dict(
                {"a": nnx.Param(jnp.zeros(shape, jnp.float32)), "b": nnx.Param(jnp.zeros_like(self.b[...]))}
            )

    def factors(self, scale: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        """Returns (A, scaled B), `[in, n]` and `[n, out]`, whose product is what the adapter adds to the kernel."""
        if not hasattr(self, "initial"):
            return self.a[...], scale * self.b[...]
        a = jnp.concatenate([self.a[...], self.initial["a"][...]], axis=-1)
        return a, jnp.concatenate([scale * self.b[...], -scale * self.initial["b"][...]], axis=-2)


class LoraLinear(nnx.Module):
    """A linear layer, `kernel: [layers, in, out]`, with or without `bias: [layers, out]`, and the adapters that
    target it.

    Args:
      name: the layer's name in a block, e.g. "q_proj".
      specs: every adapter of the model by name; one that targets no layer of this name is left out, and so is one that
        is not in linear layers.
      quantize: "int8" or "nf4" keeps the kernel so, as a `QuantizedKernel`.
    """

    def __init__(
        self,
        name: str,
        layers: int,
        features_in: int,
        features_out: int,
        specs: Mapping[str, LoraSpec | Ia3Spec],
        *,
        bias: bool = False,
        quantize: str = "",
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        low_rank = {n: spec for n, spec in specs.items() if isinstance(spec, LoraSpec)}
        sizes = {n: [spec.size_of(module_name(name, i)) for i in range(layers)] for n, spec in low_rank.items()}
        here = {n: spec for n, spec in low_rank.items() if any(sizes[n])}
        self.specs = tuple(sorted(here.items()))
        self.scales = tuple(tuple(size.scale if size else 0.0 for size in sizes[n]) for n, _ in self.specs)
        self.ranks = tuple(tuple(size.rank if size else 0 for size in sizes[n]) for n, _ in self.specs)
        kernel = jax.random.normal(rngs.params(), (layers, features_in, features_out), dtype) * features_in**-0.5
        self.kernel = QuantizedKernel(kernel, quantize, _TENSOR[name]) if quantize else nnx.Param(kernel)
        if bias:
            self.bias = nnx.Param(jnp.zeros((layers, features_out), dtype))
        adapters = {
            n: AdaLoraWeights(ranks, features_in, features_out, rngs=rngs)
            if isinstance(spec, AdaLoraSpec)
            else LoraWeights(ranks, features_in, features_out, spec, rngs=rngs)
            for (n, spec), ranks in zip(self.specs, self.ranks, strict=True)
        }
        scaling = {n: spec for n, spec in sorted(specs.items()) if isinstance(spec, Ia3Spec)}
        layers_of = {n: tuple(s.applies_to(module_name(name, i)) for i in range(layers)) for n, s in scaling.items()}
        self.scaling = tuple(n for n in scaling if any(layers_of[n]))
        for n in self.scaling:
            into = name in scaling[n].feedforward
            adapters[n] = Ia3Weights(layers_of[n], into, features_in if into else features_out)
        self.adapters = nnx.Dict(adapters)

    def __call__(
        self,
        x: jax.Array,
        active: tuple[str, ...] = (),
        key: jax.Array | None = None,
        layer: jax.Array | int = 0,
    ) -> jax.Array:
        """Applies layer number `layer` to `x: [..., in]` with the adapters named in `active`; gives `[..., out]`.

        Dropout falls on the adapters' input only, each adapter with a mask of its own, and only when a key is given.
        """
        into, out = (self._gain(side, active, layer) for side in ("gain_in", "gain_out"))
        inner = x if into is None else (into * x).astype(x.dtype)
        y = self.kernel(inner) if isinstance(self.kernel, QuantizedKernel) else inner @ self.weight(x.dtype)
        y = y if out is None else (out * y).astype(x.dtype)
        here = [i for i, (n, _) in enumerate(self.specs) if n in active]
        if here:
            y = self._adapted(x, y, here, key, layer)
        if not hasattr(self, "bias"):
            return y
        bias = self.bias[...] if out is None else out * self.bias[...]
        return y + bias.astype(x.dtype)

    def _gain(self, side: str, active: tuple[str, ...], layer: jax.Array | int) -> jax.Array | None:
        """The product of the active (IA)^3 vectors of a side, float32; None where there is none."""
        gains = [self.adapters[n].gain(side, layer) for n in self.scaling if n in active]
        gains = [gain for gain in gains if gain is not None]
        return functools.reduce(jnp.multiply, gains) if gains else None

    def weight(self, dtype: jnp.dtype) -> jax.Array:
        """Returns the kernel, dequantised where it is quantised: `[in, out]`, or the stack of all layers."""
        return self.kernel.dense(dtype) if isinstance(self.kernel, QuantizedKernel) else self.kernel[...].astype(dtype)

    def _adapted(self, x: jax.Array, y: jax.Array, here: list[int], key: jax.Array | None, layer) -> jax.Array:
        """Adds the adapters numbered `here` to the kernel's own `y = x W`."""
        factors, gain = [], None
        for i in here:
            name, spec = self.specs[i]
            a, b = self.adapters[name].factors(_of_layer(self.scales[i], layer))
            if spec.dora:
                stretch = self._stretch(name, a, b, _of_layer(self.ranks[i], layer))
                gain = stretch if gain is None else gain + stretch - 1.0
                b = b * stretch
            factors.append((a.astype(x.dtype), b.astype(x.dtype)))
        a, b = zip(*factors, strict=True)
        if key is None or not any(self.specs[i][1].dropout for i in here):
            low = x @ jnp.concatenate(a, axis=-1)
        else:
            keys = jax.random.split(key, len(here))
            dropped = [dropout(x, self._rate(i), k) for i, k in zip(here, keys, strict=True)]
            low = jnp.concatenate([d @ w for d, w in zip(dropped, a, strict=True)], axis=-1)
        if gain is not None:
            y = y * gain.astype(x.dtype)
        return y + low @ jnp.concatenate(b)

    def _rate(self, i: int) -> jax.Array | float:
        name, spec = self.specs[i]
        return self.adapters[name].dropout[...] if hasattr(self.adapters[name], "dropout") else spec.dropout

    def _stretch(self, name: str, a: jax.Array, b: jax.Array, rank: jax.Array | int) -> jax.Array:
        """DoRA's magnitude over norm, `[out]`; 1 where the adapter is absent. The norm receives no gradient (section
        4.3 there), nor does W + A B ever exist: its column norms come from the thin products."""
        norm = jax.lax.stop_gradient(column_norms(self.weight(jnp.float32), a, b))
        return jnp.where(jnp.asarray(rank) > 0, self.adapters[name].magnitude[...] / norm, 1.0)


def column_norms(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the norm of each column of W + A B, `[out]` in float32, W `[in, out]`, A `[in, n]`, B `[n, out]`."""
    w, exact = kernel.astype(jnp.float32), jax.lax.Precision.HIGHEST  # a TPU would round the factors to bfloat16
    cross = jnp.einsum("IO,IR->RO", w, a, precision=exact) * b
    own = jnp.einsum("IR,IS,SO->RO", a, a, b, precision=exact) * b
    return jnp.sqrt(jnp.maximum((w * w).sum(axis=0) + (2.0 * cross + own).sum(axis=0), 0.0))


def start_from_base(linear: LoraLinear, name: str) -> None:
    """Sets what a fresh adapter takes from the base's weights: PiSSA's principal part, DoRA's column norms.

    PiSSA (equation 2 there): with W = U S V, A = U_r sqrt(S_r / scale) and B = sqrt(S_r / scale) V_r. "pissa" takes the
    whole decomposition; "pissa_niter_N" approximates it by N subspace iterations (Halko et al. 2011), as PEFT does.

    Raises:
      UserError: PiSSA of a rank that the layer does not have.
    """
    i = [n for n, _ in linear.specs].index(name)
    spec, weights = linear.specs[i][1], linear.adapters[name]
    ranks, scales = jnp.asarray(linear.ranks[i]), jnp.asarray(linear.scales[i], jnp.float32)
    if spec.init != "lora":
        width, features = max(linear.ranks[i]), (weights.a.shape[1], weights.b.shape[2])
        if width > min(features):
            raise UserError(
                f"config.adapters.{name}.rank is {width}; PiSSA has no such rank in a layer of "
                f"{' by '.join(map(str, features))}"
            )

        def principal(kernel, kept, scale):
            u, s, v = _principal_part(kernel, width, spec.init)
            root = jnp.where(kept, jnp.sqrt(s / jnp.maximum(scale, 1e-30)), 0.0)
            return u * root, root[:, None] * v

        a, b = _map_kernels(principal, linear, _columns(linear.ranks[i]), scales)
        weights.a[...], weights.b[...] = a, b
        weights.initial["a"][...], weights.initial["b"][...] = a, b
    if spec.dora:
        # The adapter adds nothing yet: the norms are those of the kernel itself.
        norms = _map_kernels(lambda kernel: jnp.sqrt(jnp.square(kernel).sum(axis=0)), linear)
        weights.magnitude[...] = jnp.where(ranks[:, None] > 0, norms, 1.0)


def _map_kernels(function: Callable, linear: LoraLinear, *values: jax.Array):
    """Maps `function(kernel, *values)` over the layers, the kernel in float32; of all kernels there may be no room."""
    definition, layers = nnx.split(linear)

    def of_layer(layer):
        return function(nnx.merge(definition, layer[0]).weight(jnp.float32), *layer[1:])

    return jax.lax.map(of_layer, (layers, *values))


def _principal_part(w: jax.Array, rank: int, init: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `rank` largest singular triples of `w: [in, out]`: `[in, rank]`, `[rank]`, `[rank, out]`."""
    if init == "pissa":
        u, s, v = jnp.linalg.svd(w, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    basis = jax.random.normal(jax.random.key(0), (w.shape[1], min(2 * rank, *w.shape)))
    basis = jnp.linalg.qr(w @ basis)[0]
    for _ in range(int(init.removeprefix("pissa_niter_"))):
        basis = jnp.linalg.qr(w @ jnp.linalg.qr(w.T @ basis)[0])[0]
    u, s, v = jnp.linalg.svd(basis.T @ w, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], v[:rank]


def _columns(ranks: tuple[int, ...]) -> np.ndarray:
    """Which of the widest layer's columns each layer has, `[layers, rank]`."""
    return np.arange(max(ranks)) < np.asarray(ranks)[:, None]


def _of_layer(values: tuple, layer: jax.Array | int):
    return values[0] if len(set(values)) == 1 else jnp.asarray(values)[layer]
