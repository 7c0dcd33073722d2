"""BERT (Devlin et al. 2019): embeddings, scanned blocks of attention in both directions, a pooler; named LoRA adapters.

The encoder baselines of the paper's tables 3 and 4. A note is `[CLS] ... [SEP]`; its class is read from the first
token, through the pooler, which belongs to the base. Rows are packed as those of a LLaMA: a position attends to all of
its own segment and to nothing else. What differs from `models/llama.py` is the order (the norm comes after the sum),
the learned positions, the biases everywhere, and dropout in the base itself, in training only.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlora.models.attention_xla import MASKED
from jaxlora.models.heads import ClassificationHead, dropout
from jaxlora.models.layout import BATCH, constrain
from jaxlora.models.lora import LoraLinear
from jaxlora.models.lora_spec import BERT_MODULES, LoraSpec
from jaxlora.models.remat import REMAT


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT, and how it computes.

    Attributes:
      embed: width of the residual stream. mlp: width between the two layers of the feed-forward part.
      positions: the longest note. types: kinds of segments that it was pretrained with; all here are of kind 0.
      dropout: of the embeddings and of what each half of a block adds. attention_dropout: of the attention's weights.
      head_dropout: of what the head reads.
      dtype: of the computation and of the weights; adapters, head and norms stay float32.
      trained: whether the base is trained: its weights are float32 then.
      remat: which activations the backward pass finds saved, a key of `REMAT`.
      unroll: unrolls the scan over layers, for debugging.
    """

    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    dtype: str = "float32"
    trained: bool = False
    remat: str = "none"
    unroll: bool = False
    modules: ClassVar[tuple[str, ...]] = tuple(BERT_MODULES)  # the linear layers of a block
    causal: ClassVar[bool] = False
    window: ClassVar[int] = 0
    quantize: ClassVar[str] = ""

    @property
    def weights(self) -> jnp.dtype:
        """The dtype of the base's weights."""
        return jnp.dtype("float32" if self.trained else self.dtype)

    @property
    def drops_out(self) -> bool:
        """Whether the base itself draws masks in training."""
        return max(self.dropout, self.attention_dropout, self.head_dropout) > 0

    @property
    def head_dim(self) -> int:
        """The width of an attention head."""
        return self.embed // self.heads

    @property
    def kv_heads(self) -> int:
        """How many heads keys and values have: as many as the queries."""
        return self.heads

    def features(self, name: str) -> tuple[int, int]:
        """Returns (in, out) of a linear layer, e.g. "query"."""
        return {"intermediate": (self.embed, self.mlp), "output": (self.mlp, self.embed)}.get(
            name, (self.embed, self.embed)
        )


class LayerNorm(nnx.Module):
    """`(x - mean) / deviation * scale + bias`, in float32; `scale, bias: [..., embed]`."""

    def __init__(self, shape: tuple[int, ...], epsilon: float):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - x32.mean(axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """The sum of a word's, a position's and the first type's embedding, normed."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        def table(rows):
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, config.embed), config.weights))

        self.word, self.position, self.type = table(config.vocab), table(config.positions), table(config.types)
        self.norm = LayerNorm((config.embed,), config.epsilon)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns `[batch, length, embed]` of int32 `[batch, length]` each."""
        words = constrain(self.word[...][constrain(tokens, "data")], "data", None, "fsdp")
        return self.norm(constrain(words + self.position[...][positions] + self.type[...][0], BATCH))


class Block(nnx.Module):
    """All blocks of the model, stacked; called on one layer's slice inside the scan."""

    def __init__(self, config: BertConfig, specs: Mapping[str, LoraSpec], *, rngs: nnx.Rngs):
        c = config

        def linear(name):
            shape = (c.layers, *c.features(name))
            return LoraLinear(name, *shape, specs, bias=True, rngs=rngs, dtype=c.weights)

        self.config = config
        self.query, self.key, self.value = linear("query"), linear("key"), linear("value")
        self.attention_output = linear("attention_output")
        self.attention_norm = LayerNorm((c.layers, c.embed), c.epsilon)
        self.intermediate, self.output = linear("intermediate"), linear("output")
        self.output_norm = LayerNorm((c.layers, c.embed), c.epsilon)

    def __call__(self, x, mask, active, key, layer):
        """Applies layer number `layer` to `x: [batch, length, embed]`.

        Args:
          mask: bool `[batch, 1, length, length]`, what each position attends to.
        """
        c = self.config
        keys = [None] * 9 if key is None else jax.random.split(key, 9)
        x = checkpoint_name(constrain(x, BATCH), "block")
        q, k, v = (
            checkpoint_name(_heads(linear(x, active, of_linear, layer), c.heads), name)
            for name, linear, of_linear in zip("qkv", (self.query, self.key, self.value), keys[:3], strict=True)
        )
        a = _attend(q, k, v, mask, c.attention_dropout, keys[6])
        a = constrain(checkpoint_name(a.reshape(x.shape), "attention"), BATCH, None, "tensor")
        a = self.attention_output(a, active, keys[3], layer)
        x = self.attention_norm(constrain(x + dropout(a, c.dropout, keys[7]), BATCH))
        h = jax.nn.gelu(self.intermediate(x, active, keys[4], layer), approximate=False)
        h = self.output(constrain(h, BATCH, None, "tensor"), active, keys[5], layer)
        return self.output_norm(constrain(x + dropout(h, c.dropout, keys[8]), BATCH))


def _heads(x: jax.Array, heads: int) -> jax.Array:
    return constrain(x.reshape(*x.shape[:2], heads, -1), BATCH, None, "tensor")


def _attend(q, k, v, mask, rate: float, key: jax.Array | None) -> jax.Array:
    """Attention of `[batch, length, heads, head_dim]`; a BERT's rows are short, so that the weights are made whole."""
    scores = jnp.einsum("BTHD,BSHD->BHTS", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    return jnp.einsum("BHTS,BSHD->BTHD", dropout(weights, rate, key).astype(v.dtype), v)


class Pooler(nnx.Module):
    """`tanh(h W + bias)` of a note's first token."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        shape = config.embed, config.embed
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, config.weights))
        self.bias = nnx.Param(jnp.zeros((config.embed,), config.weights))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype))


class Bert(nnx.Module):
    """BERT with named adapters and a classification head of `labels` labels; it has no language model."""

    def __init__(self, config: BertConfig, specs: Mapping[str, LoraSpec], labels: int, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(config, rngs=rngs)
        self.blocks = Block(config, specs, rngs=rngs)
        self.pooler = Pooler(config, rngs=rngs)
        self.head = ClassificationHead(config.embed, labels, bias=True, dropout=config.head_dropout, rngs=rngs)

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
          tokens, segments, positions: int32 `[batch, length]`; a segment is a packed note, 0 padding; positions start
            at 0 in every segment and stay below `config.positions`.
          active: names of the adapters that enter the forward pass.
          key: for dropout, the model's own and the adapters'; None computes without.
        """
        c = self.config
        # The head takes another fold of the same key.
        keys = [None] * 2 if key is None else jax.random.split(jax.random.fold_in(key, 0))
        mask = segments[:, None, :, None] == segments[:, None, None, :]
        definition, layers = nnx.split(self.blocks)

        def block(x, layer):
            weights, layer_key, number = layer
            return nnx.merge(definition, weights)(x, mask, active, layer_key, number), None

        if c.remat != "none":
            block = jax.checkpoint(block, policy=REMAT[c.remat])
        layer_keys = None if key is None else jax.random.split(keys[1], c.layers)
        x = dropout(self.embedding(tokens, positions).astype(c.dtype), c.dropout, keys[0])
        numbered = layers, layer_keys, jnp.arange(c.layers)
        return jax.lax.scan(block, constrain(x, BATCH), numbered, unroll=c.unroll)[0]

    def pooled(self, hidden: jax.Array, segments: jax.Array, max_segments: int) -> jax.Array:
        """Returns what the head reads of each segment: the pooler's output of its first token,
        `[batch, max_segments, embed]`; that of an absent segment means nothing."""
        numbers = jnp.arange(1, max_segments + 1)
        first = jnp.argmax(segments[:, None] == numbers[:, None], axis=-1)
        return self.pooler(jnp.take_along_axis(hidden, first[..., None], axis=1))
