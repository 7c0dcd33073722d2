"""LLaMA: embedding, scanned blocks of attention and SwiGLU, final norm; any number of named LoRA adapters."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlora.models.attention import attend, rotary, rotate
from jaxlora.models.heads import ClassificationHead
from jaxlora.models.lora import LoraLinear, LoraSpec

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_qkv": jax.checkpoint_policies.save_only_these_names("q", "k", "v"),
    "save_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a LLaMA, and how it computes.

    Attributes:
      embed: width of the residual stream. mlp: width of the SwiGLU layer.
      tied: whether the unembedding is the embedding, transposed.
      dtype: of the computation and of the frozen weights; adapters, head and norms stay float32.
      remat: which activations the backward pass finds saved, a key of `REMAT`.
      unroll: unrolls the scan over layers, for debugging.
    """

    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    tied: bool = False
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False


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

    def __init__(self, config: LlamaConfig, specs: Mapping[str, LoraSpec], *, rngs: nnx.Rngs):
        c, width, kv_width = config, config.heads * config.head_dim, config.kv_heads * config.head_dim

        def linear(name, features_in, features_out):
            return LoraLinear(name, c.layers, features_in, features_out, specs, rngs=rngs, dtype=jnp.dtype(c.dtype))

        self.config = config
        self.attention_norm = RMSNorm((c.layers, c.embed), c.rms_epsilon)
        self.q_proj = linear("q_proj", c.embed, width)
        self.k_proj = linear("k_proj", c.embed, kv_width)
        self.v_proj = linear("v_proj", c.embed, kv_width)
        self.o_proj = linear("o_proj", width, c.embed)
        self.mlp_norm = RMSNorm((c.layers, c.embed), c.rms_epsilon)
        self.gate_proj = linear("gate_proj", c.embed, c.mlp)
        self.up_proj = linear("up_proj", c.embed, c.mlp)
        self.down_proj = linear("down_proj", c.mlp, c.embed)

    def __call__(self, x, rotation, segments, active, key):
        """`x: [batch, length, embed]` → the same shape."""
        c = self.config
        batch, length, _ = x.shape
        keys = [None] * 7 if key is None else jax.random.split(key, 7)
        h = self.attention_norm(x)
        q = self.q_proj(h, active, keys[0]).reshape(batch, length, c.heads, c.head_dim)
        k = self.k_proj(h, active, keys[1]).reshape(batch, length, c.kv_heads, c.head_dim)
        v = self.v_proj(h, active, keys[2]).reshape(batch, length, c.kv_heads, c.head_dim)
        q, k, v = checkpoint_name(rotate(q, *rotation), "q"), checkpoint_name(rotate(k, *rotation), "k"), v
        a = attend(q, k, checkpoint_name(v, "v"), segments).reshape(batch, length, c.heads * c.head_dim)
        x = x + self.o_proj(a, active, keys[3])
        h = self.mlp_norm(x)
        gated = jax.nn.silu(self.gate_proj(h, active, keys[4])) * self.up_proj(h, active, keys[5])
        return x + self.down_proj(gated, active, keys[6])


class Llama(nnx.Module):
    """LLaMA with named adapters and, where `labels` is given, a classification head.

    Args:
      config: the shape.
      specs: adapters by name.
      labels: number of labels of the head; 0 builds none.
    """

    def __init__(
        self, config: LlamaConfig, specs: Mapping[str, LoraSpec] | None = None, labels: int = 0, *, rngs: nnx.Rngs
    ):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        shape = (config.vocab, config.embed)
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
        self.blocks = Block(config, specs or {}, rngs=rngs)
        self.norm = RMSNorm((config.embed,), config.rms_epsilon)
        if not config.tied:
            self.lm_head = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape[::-1], dtype))
        if labels:
            self.head = ClassificationHead(config.embed, labels, rngs=rngs)

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
            every segment.
          active: names of the adapters that enter the forward pass.
          key: for the adapters' dropout; None computes without.
        """
        c = self.config
        rotation = rotary(positions, c.head_dim, c.rope_theta)
        definition, layers = nnx.split(self.blocks)

        def block(x, layer):
            weights, layer_key = layer
            return nnx.merge(definition, weights)(x, rotation, segments, active, layer_key), None

        if c.remat != "none":
            block = jax.checkpoint(block, policy=REMAT[c.remat])
        keys = None if key is None else jax.random.split(key, c.layers)
        x = self.embedding[...][tokens].astype(c.dtype)
        x, _ = jax.lax.scan(block, x, (layers, keys), unroll=c.unroll)
        return self.norm(x)

    def unembedding(self) -> jax.Array:
        """The language-model head, `[embed, vocab]`."""
        return self.embedding[...].T if self.config.tied else self.lm_head[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits `[batch, length, vocab]` in float32, for small inputs; training never makes them whole."""
        return (hidden @ self.unembedding().astype(hidden.dtype)).astype(jnp.float32)
