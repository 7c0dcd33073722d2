"""LLaMA and its kin: embedding, scanned blocks of attention and SwiGLU, final norm; named LoRA adapters.

Llama 1 to 3.2, Mistral (a sliding window) and Qwen2 (biases) differ in the fields of `LlamaConfig` only.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlora.models.attention import attend, attend_cached
from jaxlora.models.heads import ClassificationHead, pool
from jaxlora.models.layout import BATCH, constrain, platform
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora import LoraLinear
from jaxlora.models.prompt_spec import PromptFamily
from jaxlora.models.prompts import Prompts, active_prompts, attend_beside, embed_virtual, make_prompts, put
from jaxlora.models.remat import REMAT
from jaxlora.models.rotary import note_lengths, rotary, rotate
from jaxlora.models.techniques import Spec


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale`, the mean square taken in float32; `scale: [..., embed]`."""

    def __init__(self, shape: tuple[int, ...], epsilon: float):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...]).astype(x.dtype)


class Block(nnx.Module):
    """All transformer blocks of the model, stacked; called on one layer's slice inside the scan."""

    def __init__(self, config: LlamaConfig, specs: Mapping[str, Spec], *, rngs: nnx.Rngs):
        c = config

        def linear(name):
            shape, bias = (c.layers, *c.features(name)), name in c.biases
            form = {"bias": bias, "quantize": c.quantize, "dtype": c.weights}
            return LoraLinear(name, *shape, specs, **form, rngs=rngs)

        self.config = config
        self.attention_norm = RMSNorm((c.layers, c.embed), c.rms_epsilon)
        self.q_proj = linear("q_proj")
        self.k_proj = linear("k_proj")
        self.v_proj = linear("v_proj")
        self.o_proj = linear("o_proj")
        self.mlp_norm = RMSNorm((c.layers, c.embed), c.rms_epsilon)
        self.gate_proj = linear("gate_proj")
        self.up_proj = linear("up_proj")
        self.down_proj = linear("down_proj")

    def __call__(self, x, rotation, attention, active, key, layer, prompts: Prompts):
        """Applies layer number `layer` to `x: [batch, length, embed]`.

        Args:
          prompts: the layer's own.
          attention: (q, k, v) of the layer to the attention's output and the cache, where there is one.

        Returns:
          (x, the cache).
        """
        c = self.config
        batch, length, _ = x.shape
        keys = [None] * 7 if key is None else jax.random.split(key, 7)
        x = checkpoint_name(constrain(x, BATCH), "block")
        h = self.attention_norm(x)
        q = self.q_proj(h, active, keys[0], layer).reshape(batch, length, c.heads, c.head_dim)
        k = self.k_proj(h, active, keys[1], layer).reshape(batch, length, c.kv_heads, c.head_dim)
        v = self.v_proj(h, active, keys[2], layer).reshape(batch, length, c.kv_heads, c.head_dim)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        for place, (prefix_k, prefix_v) in zip(prompts.places, prompts.prefixes, strict=True):
            k, v = put(k, place, prefix_k), put(v, place, prefix_v)
        named = {"q": q, "k": k, "v": v}.items()
        q, k, v = (checkpoint_name(constrain(y, BATCH, None, "tensor"), name) for name, y in named)
        a, cache = attention(q, k, v)
        for prompt, gate in prompts.beside:
            frozen = [functools.partial(linear, layer=layer) for linear in (self.k_proj, self.v_proj)]
            a = a + attend_beside(q, prompt, gate, *frozen)
        a = constrain(a.reshape(batch, length, c.heads * c.head_dim), BATCH, None, "tensor")
        x = constrain(x + self.o_proj(a, active, keys[3], layer), BATCH)
        h = self.mlp_norm(x)
        gate, up = self.gate_proj(h, active, keys[4], layer), self.up_proj(h, active, keys[5], layer)
        hidden = constrain(jax.nn.silu(gate) * up, BATCH, None, "tensor")
        return constrain(x + self.down_proj(hidden, active, keys[6], layer), BATCH), cache


class Cache(NamedTuple):
    """The rotated keys and the values of the positions so far, each `[layers, batch, slots, kv_heads, head_dim]`."""

    k: jax.Array
    v: jax.Array

    def write(self, layer: jax.Array, slot: jax.Array | int, k: jax.Array, v: jax.Array) -> "Cache":
        """Returns the cache with `k` and `v: [batch, n, kv_heads, head_dim]` of a layer at the slots from `slot` on."""
        at = (layer, 0, slot, 0, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.k, k[None].astype(self.k.dtype), at),
            jax.lax.dynamic_update_slice(self.v, v[None].astype(self.v.dtype), at),
        )


def _written_out(layers: int) -> bool:
    """Returns whether the scan over layers is unrolled without being asked to: on a CPU, where few layers compile as
    quickly so, and copying what each of them saves into one stack takes up to a third of a small model's step."""
    return platform() == "cpu" and layers <= 8


class Llama(nnx.Module):
    """LLaMA with named adapters and, where `labels` is given, a classification head.

    Args:
      config: the shape.
      specs: adapters by name.
      labels: number of labels of the head; 0 builds none. A model with a head has no unembedding of its own.
    """

    def __init__(
        self, config: LlamaConfig, specs: Mapping[str, Spec] | None = None, labels: int = 0, *, rngs: nnx.Rngs
    ):
        self.config = config
        dtype = config.weights
        shape = (config.vocab, config.embed)
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        prompts = {name: spec for name, spec in (specs or {}).items() if isinstance(spec, PromptFamily)}
        inside = {name: spec for name, spec in (specs or {}).items() if name not in prompts}
        self.blocks = Block(config, inside, rngs=rngs)
        self.norm = RMSNorm((config.embed,), config.rms_epsilon)
        if labels:
            self.head = ClassificationHead(config.embed, labels, rngs=rngs)
        elif not config.tied:
            self.lm_head = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape[::-1], dtype))
        self.adapters = make_prompts(prompts, config, rngs=rngs)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        active: tuple[str, ...] = (),
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the final hidden states `[batch, length, embed]`.

        Args:
          tokens, segments, positions: int32 `[batch, length]`; see `attend` for segments; positions start at 0 in
            every segment. A token below 0 is a virtual one (see `prompts`), in front of its note.
          active: names of the adapters that enter the forward pass.
          key: for the adapters' dropout; None computes without.
        """
        return self._packed(tokens, segments, positions, active, key, None)[0]

    def prefill(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, slots: int, active: tuple[str, ...] = ()
    ) -> tuple[jax.Array, Cache]:
        """Returns the hidden states, as a call does, and a cache with room for `slots` positions, these the first."""
        c = self.config
        empty = jnp.zeros((c.layers, len(tokens), slots, c.kv_heads, c.head_dim), c.dtype)
        return self._packed(tokens, segments, positions, active, None, Cache(empty, empty))

    def decode(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        cache: Cache,
        slot: jax.Array,
        visible: jax.Array,
        active: tuple[str, ...] = (),
    ) -> tuple[jax.Array, Cache]:
        """Computes one new position of each row.

        Args:
          tokens, positions: int32 `[batch, 1]`.
          cache: of the positions before. slot: where in the cache the new position goes, a scalar.
          visible: bool `[batch, slots]`, the positions that each row has by now, the new one among them.

        Returns:
          (hidden states `[batch, 1, embed]`, the cache with the new position).
        """
        if self.config.window:
            visible = visible & (jnp.arange(visible.shape[1]) > slot - self.config.window)

        def attention(q, k, v, layer, cache):
            cache = cache.write(layer, slot, k, v)
            return attend_cached(q, cache.k[layer], cache.v[layer], visible), cache

        # The virtual tokens are in the cache; what is beside the text is seen by every position.
        prompts = active_prompts(self.adapters, active, tokens)._replace(places=(), prefixes=())
        return self._scan(self._embedded(tokens), prompts, positions, positions + 1, attention, active, None, cache)

    def _packed(self, tokens, segments, positions, active, key, cache: Cache | None):
        """Packed rows through the blocks; their keys and values go to the front of the cache, where there is one."""

        c = self.config

        def attention(q, k, v, layer, cache):
            out = attend(q, k, v, segments, c.window, c.attention, c.attention_block)
            return out, None if cache is None else cache.write(layer, 0, k, v)

        lengths = note_lengths(positions, segments)
        own = None if key is None else jax.random.fold_in(key, c.layers)
        x = embed_virtual(self.adapters, active, tokens, self._embedded(tokens), own)
        prompts = active_prompts(self.adapters, active, tokens)
        return self._scan(x, prompts, positions, lengths, attention, active, key, cache)

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        # Under fsdp each device looks up its columns of all rows, and columns are exchanged for rows: the table is not
        # gathered. Of a virtual token it is any row.
        x = self.embedding[...][constrain(tokens, "data")]
        return constrain(x, "data", None, "fsdp").astype(self.config.dtype)

    def _scan(self, x, prompts: Prompts, positions, lengths, attention: Callable, active, key, cache: Cache | None):
        c = self.config
        rotation = rotary(c.rope, positions, lengths, c.head_dim)
        definition, layers = nnx.split(self.blocks)

        def block(carry, layer):
            x, cache = carry
            weights, layer_key, number, prefixes, beside = layer
            attend_here = functools.partial(attention, layer=number, cache=cache)
            own = Prompts(prompts.places, prefixes, beside)
            return nnx.merge(definition, weights)(x, rotation, attend_here, active, layer_key, number, own), None

        if c.remat != "none":
            block = jax.checkpoint(block, policy=REMAT[c.remat])
        keys = None if key is None else jax.random.split(key, c.layers)
        (x, cache), _ = jax.lax.scan(
            block,
            (constrain(x, BATCH), cache),
            (layers, keys, jnp.arange(c.layers), prompts.prefixes, prompts.beside),
            unroll=c.unroll or (cache is None and _written_out(c.layers)),
        )
        return self.norm(x), cache

    def pooled(self, hidden: jax.Array, segments: jax.Array, max_segments: int) -> jax.Array:
        """Returns what the head reads of each segment, `[batch, max_segments, embed]`; see `pool`."""
        return pool(hidden, segments, max_segments)

    def unembedding(self) -> jax.Array:
        """The language-model head, `[embed, vocab]`."""
        return self.embedding[...].T if self.config.tied else self.lm_head[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits `[batch, length, vocab]` in float32, for small inputs; training never makes them whole."""
        return (hidden @ self.unembedding().astype(hidden.dtype)).astype(jnp.float32)
