"""The shape of a LLaMA, and how it computes; `interop/llama_config.py` reads it from a `config.json`."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from jaxlora.models.lora_spec import MODULES
from jaxlora.models.rotary import Rope


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA's sizes, what its kin have of their own, and what a run chooses of the computation.

    Attributes:
      embed: width of the residual stream. mlp: width of the SwiGLU layer.
      rope: the rotary embedding.
      window: positions that a position attends to, itself included; 0 is all.
      biases: names of the linear layers that have a bias.
      tied: whether the unembedding is the embedding, transposed.
      dtype: of the computation and of the frozen weights; adapters, head and norms stay float32.
      trained: whether the base is trained: all weights are float32 then, for an update is often smaller than the
        distance of two numbers in bfloat16, and cast for the computation.
      quantize: keeps the kernels of the blocks as "int8" or "nf4" codes; embedding and unembedding stay in `dtype`, for
        the first is looked up and every logit is of the second.
      remat: which activations the backward pass finds saved, a key of `REMAT`.
      unroll: unrolls the scan over layers, for debugging; on a CPU, few layers are unrolled in any case.
      attention, attention_block: the kernel of attention over packed rows, and its blocks; see `attention.choose`.
    """

    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_epsilon: float = 1e-5
    rope: Rope = Rope()
    window: int = 0
    biases: tuple[str, ...] = ()
    tied: bool = False
    dtype: str = "float32"
    trained: bool = False
    quantize: str = ""
    remat: str = "none"
    unroll: bool = False
    attention: str = "auto"
    attention_block: int = 512
    modules: ClassVar[tuple[str, ...]] = tuple(MODULES)  # the linear layers of a block
    causal: ClassVar[bool] = True
    drops_out: ClassVar[bool] = False  # but its adapters may

    @property
    def weights(self) -> jnp.dtype:
        """The dtype of the base's weights."""
        return jnp.dtype("float32" if self.trained else self.dtype)

    def features(self, name: str) -> tuple[int, int]:
        """Returns (in, out) of a linear layer, e.g. "q_proj"."""
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.embed, width),
            "k_proj": (self.embed, kv_width),
            "v_proj": (self.embed, kv_width),
            "o_proj": (width, self.embed),
            "gate_proj": (self.embed, self.mlp),
            "up_proj": (self.embed, self.mlp),
            "down_proj": (self.mlp, self.embed),
        }[name]
