"""Adapters that add no weight to a layer but something to attend to (docs/paper.md; the forms are those of PEFT).

    prefix tuning       a virtual token has learned keys and values in every layer, which RoPE does not rotate
    prompt tuning       a virtual token has a learned embedding, and is computed as a word is
    P-tuning            the same, its embedding made by a small network
    adaptation prompt   + gate * softmax(q K'^T / sqrt(head_dim)) V',  K' = P W_k,  V' = P W_v,  in the topmost layers

Virtual tokens are positions of a packed row, in front of every note: number i of them is the token -(i + 1). So they
share the attention of the words, whatever its kernel, and a row with them is packed as any other. Several active
adapters have theirs one after the other, in the order of `active`. A position takes what is its by a product with zeros
and ones, and not by an index, whose gradient would add in an order of its own on some devices.

Parameters are float32, under `adapters/<name>` of the model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlora.models.heads import dropout
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptFamily, PromptSpec, PTuningSpec


class Affine(nnx.Module):
    """`x W + b`, both from U(-1/sqrt(in), 1/sqrt(in)), as PyTorch's Linear."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        self.kernel = _uniform((features_in, features_out), features_in, rngs)
        self.bias = _uniform((features_out,), features_in, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`."""
        return x @ self.kernel[...] + self.bias[...]


class Lstm(nnx.Module):
    """One layer of an LSTM that reads forwards and backwards, as PyTorch's: gates in the order input, forget, cell,
    output, each with two biases; the first axis of a parameter is the direction."""

    def __init__(self, features_in: int, hidden: int, *, rngs: nnx.Rngs):
        self.input = _uniform((2, features_in, 4 * hidden), hidden, rngs)
        self.recurrent = _uniform((2, hidden, 4 * hidden), hidden, rngs)
        self.input_bias = _uniform((2, 4 * hidden), hidden, rngs)
        self.recurrent_bias = _uniform((2, 4 * hidden), hidden, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[n, in]` to `[n, 2 * hidden]`, forwards beside backwards."""

        def read(x, weight, recurrent, bias):
            def step(state, given):
                h, c = state
                i, f, g, o = jnp.split(given + h @ recurrent, 4)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            zeros = jnp.zeros(recurrent.shape[0], x.dtype)
            return jax.lax.scan(step, (zeros, zeros), x @ weight + bias)[1]

        bias = self.input_bias[...] + self.recurrent_bias[...]
        there, back = jax.vmap(read)(jnp.stack([x, x[::-1]]), self.input[...], self.recurrent[...], bias)
        return jnp.concatenate([there, back[::-1]], axis=-1)


class Prefix(nnx.Module):
    """`table: [n, layers * 2 * kv_heads * head_dim]`, or with a projection `[n, kv_heads * head_dim]`, from N(0, 1)."""

    def __init__(self, spec: PrefixSpec, shape: LlamaConfig, *, rngs: nnx.Rngs):
        self.count, self.shape = spec.virtual_tokens, (shape.layers, 2, shape.kv_heads, shape.head_dim)
        width = shape.kv_heads * shape.head_dim
        self.table = _normal((self.count, width if spec.projection else shape.layers * 2 * width), rngs)
        if spec.projection:
            self.inner = Affine(width, spec.hidden or width, rngs=rngs)
            self.outer = Affine(spec.hidden or width, shape.layers * 2 * width, rngs=rngs)

    def keys_and_values(self) -> jax.Array:
        """`[layers, 2, n, kv_heads, head_dim]`: of every layer the keys, then the values."""
        flat = self.table[...]
        if hasattr(self, "inner"):
            flat = self.outer(jnp.tanh(self.inner(flat)))
        return jnp.moveaxis(flat.reshape(self.count, *self.shape), 0, 2)


class Prompt(nnx.Module):
    """`table: [n, embed]`, from N(0, 1), or from the base's embeddings (see `train.assemble`)."""

    def __init__(self, spec: PromptSpec, shape: LlamaConfig, *, rngs: nnx.Rngs):
        self.count = spec.virtual_tokens
        self.table = _normal((self.count, shape.embed), rngs)

    def embeddings(self, key: jax.Array | None) -> jax.Array:
        """`[n, embed]`."""
        return self.table[...]


class PTuning(nnx.Module):
    """`table: [n, embed]`, from N(0, 1), and what makes embeddings of it."""

    def __init__(self, spec: PTuningSpec, shape: LlamaConfig, *, rngs: nnx.Rngs):
        self.count, self.dropout = spec.virtual_tokens, spec.dropout
        self.table = _normal((self.count, shape.embed), rngs)
        hidden, width = spec.hidden, 2 * spec.hidden
        if spec.encoder == "lstm":
            sizes = [shape.embed] + [width] * (spec.layers - 1)
            self.lstm = nnx.Dict({f"layer{i}": Lstm(size, hidden, rngs=rngs) for i, size in enumerate(sizes)})
            sizes = [width, width, shape.embed]
        else:
            sizes = [shape.embed, hidden, hidden, shape.embed]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.mlp = nnx.Dict({f"layer{i}": Affine(*pair, rngs=rngs) for i, pair in enumerate(pairs)})

    def embeddings(self, key: jax.Array | None) -> jax.Array:
        """`[n, embed]`; with a key, some of what goes from one layer of the LSTM to the next is dropped."""
        x = self.table[...]
        if hasattr(self, "lstm"):
            for i in range(len(self.lstm)):
                if i and key is not None:
                    x = dropout(x, self.dropout, jax.random.fold_in(key, i))
                x = self.lstm[f"layer{i}"](x)
        for i in range(len(self.mlp)):
            x = self.mlp[f"layer{i}"](jax.nn.relu(x) if i else x)
        return x


class AdaptationPrompt(nnx.Module):
    """`prompt: [top, length, embed]` from N(0, 1) and `gate: [top]`, zeros, of the `top` layers next to the output."""

    count = 0

    def __init__(self, spec: AdaptationPromptSpec, shape: LlamaConfig, *, rngs: nnx.Rngs):
        self.below = shape.layers - spec.layers
        self.prompt = _normal((spec.layers, spec.length, shape.embed), rngs)
        self.gate = nnx.Param(jnp.zeros(spec.layers, jnp.float32))

    def of_layers(self) -> tuple[jax.Array, jax.Array]:
        """Returns (prompt, gate) of all layers, zeros in those that have none."""
        return tuple(jnp.pad(x[...], [(self.below, 0), *[(0, 0)] * (x.ndim - 1)]) for x in (self.prompt, self.gate))


_MODULES = {
    PrefixSpec: Prefix, PromptSpec: Prompt, PTuningSpec: PTuning, AdaptationPromptSpec: AdaptationPrompt,
}  # fmt: skip
Adapters = Mapping[str, Prefix | Prompt | PTuning | AdaptationPrompt]


def make_prompts(specs: Mapping[str, PromptFamily], shape: LlamaConfig, *, rngs: nnx.Rngs) -> nnx.Dict:
    """Returns the adapters of this family by name."""
    return nnx.Dict({name: _MODULES[type(spec)](spec, shape, rngs=rngs) for name, spec in specs.items()})


class Prompts(NamedTuple):
    """What the active adapters of this family give to the layers.

    Attributes:
      places: of each prefix, which of its virtual tokens a position is: bool `[batch, length, n]`.
      prefixes: their keys and values, `[2, n, kv_heads, head_dim]` of a layer, with a leading axis of all layers.
      beside: (prompt `[length, embed]`, gate `[]`) of a layer of each adaptation prompt, with such an axis too.
    """

    places: tuple[jax.Array, ...]
    prefixes: tuple[jax.Array, ...]
    beside: tuple[tuple[jax.Array, jax.Array], ...]


def active_prompts(adapters: Adapters, active: Sequence[str], tokens: jax.Array) -> Prompts:
    """Returns what the layers are given for `tokens: [batch, length]`."""
    here = list(_places(adapters, active, tokens))
    prefixes = [(adapter, place) for adapter, place in here if isinstance(adapter, Prefix)]
    return Prompts(
        tuple(place for _, place in prefixes),
        tuple(adapter.keys_and_values() for adapter, _ in prefixes),
        tuple(adapter.of_layers() for adapter, _ in here if isinstance(adapter, AdaptationPrompt)),
    )


def embed_virtual(
    adapters: Adapters, active: Sequence[str], tokens: jax.Array, x: jax.Array, key: jax.Array | None
) -> jax.Array:
    """Returns `x: [batch, length, embed]` with the embeddings of virtual tokens where they are."""
    for number, (adapter, place) in enumerate(_places(adapters, active, tokens)):
        if isinstance(adapter, Prompt | PTuning):
            own = None if key is None else jax.random.fold_in(key, number)
            x = put(x, place, adapter.embeddings(own))
    return x


def put(x: jax.Array, place: jax.Array, values: jax.Array) -> jax.Array:
    """Returns `x: [batch, length, ...]` with `values: [n, ...]` at their places, bool `[batch, length, n]`."""
    exact = jax.lax.Precision.HIGHEST  # a TPU would round the values to bfloat16
    found = jnp.einsum("BTN,N...->BT...", place.astype(x.dtype), values.astype(x.dtype), precision=exact)
    return jnp.where(place.any(axis=-1).reshape(*place.shape[:2], *[1] * (x.ndim - 2)), found, x)


def attend_beside(q: jax.Array, prompt: jax.Array, gate: jax.Array, k_proj: Callable, v_proj: Callable) -> jax.Array:
    """Returns what an adaptation prompt adds to the attention's output, before o_proj, `[batch, length, heads,
    head_dim]`; PEFT multiplies it by o_proj on its own, which is the same where that has no bias.

    Args:
      q: as the attention has it, rotated. prompt: `[length, embed]`. gate: a scalar.
      k_proj, v_proj: the frozen projections, `[length, embed]` to `[length, kv_heads * head_dim]`.
    """
    batch, length, heads, head_dim = q.shape
    k, v = (project(prompt.astype(q.dtype)).reshape(len(prompt), -1, head_dim) for project in (k_proj, v_proj))
    grouped = (q * head_dim**-0.5).reshape(batch, length, k.shape[1], -1, head_dim)
    scores = jnp.einsum("BTKGD,PKD->BTKGP", grouped, k, preferred_element_type=jnp.float32)
    weights = (gate * jax.nn.softmax(scores, axis=-1)).astype(q.dtype)
    return jnp.einsum("BTKGP,PKD->BTKGD", weights, v).reshape(q.shape)


def _places(adapters: Adapters, active: Sequence[str], tokens: jax.Array):
    """Yields every active adapter of this family, and which of its virtual tokens each position is."""
    before = 0
    for name in active:
        if name in adapters:
            yield adapters[name], tokens[..., None] == -1 - before - jnp.arange(adapters[name].count)
            before += adapters[name].count


def _normal(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))


def _uniform(shape: tuple[int, ...], fan_in: int, rngs: nnx.Rngs) -> nnx.Param:
    bound = fan_in**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, minval=-bound, maxval=bound))
