"""The work of a run, counted by hand: what the method needs (model), and what the program does (hardware).

Per token, with P the parameters of the matrix products (the unembedding among them, the embedding's look-up not) and
p those of an adapter:

    forward                     2 P                  2 p for each active adapter
    backward to activations     2 P                  2 p likewise
    backward to weights         none: P is frozen    2 p for each trained adapter

so a step costs 4 P + 6 p (4 p for an adapter that is active and frozen), and not the 6 P of full training; a head on a
frozen model costs 2 P, for no gradient goes below it. Causal attention adds 3 * layers * 2 * length * heads * head_dim
for a note of `length` tokens: two products forward, four backward, half of the square.

Hardware adds what is computed a second time: the forward pass as far as `remat` does not save it (down_proj's product
is no part of that, since nothing in the backward pass reads it), and the attention weights, which every kernel here
makes again from the saved log-sums. `cost_analysis` of a compiled step cannot be used for either: it counts the body of
the scan over layers once. Not counted: what is done once an update (DoRA's norms, the optimizer), elementwise
operations, and logits that are made again where the loss is taken in chunks.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlora import partition
from jaxlora.models.llama import LlamaConfig
from jaxlora.models.lora_spec import MODULES, LoraSpec, module_name

# The products that the backward pass makes again, by remat level.
_AGAIN = {
    "none": (),
    "full": ("q_proj", "k_proj", "v_proj", "attention", "o_proj", "gate_proj", "up_proj"),
    "offload": ("o_proj", "gate_proj", "up_proj"),
    "save_qkv": ("o_proj", "gate_proj", "up_proj"),
    "save_dots": (),
}


class Flops(NamedTuple):
    """FLOPs per token."""

    model: float
    hardware: float


class Cost(NamedTuple):
    """FLOPs of a token in the matrix products, of a pair of query and key, and of a place that is classified."""

    token: float
    pair: float
    place: float

    def of(self, tokens: float, pairs: float, places: float) -> float:
        """Returns the FLOPs of so many of each."""
        return self.token * tokens + self.pair * pairs + self.place * places


def flops(
    shape: LlamaConfig,
    specs: Mapping[str, LoraSpec],
    active: Sequence[str],
    trainable: Sequence[str],
    length: int,
    head_labels: int,
    remat: str,
) -> Flops:
    """Returns the FLOPs per token of an update whose rows are one note each of `length` tokens.

    Args:
      specs: adapters by name. active: those in the forward pass. trainable: patterns of partitions.
      head_labels: number of labels of the head; 0 is the language-model loss.
      remat: a level of `config.remat`.
    """
    model, hardware = costs(shape, specs, active, trainable, head_labels, remat)
    of_row = length, pairs(np.asarray([length]), shape.window), 1
    return Flops(model.of(*of_row) / length, hardware.of(*of_row) / length)


def pairs(lengths: np.ndarray, window: int = 0) -> float:
    """Returns how many pairs of query and key notes of these lengths have: half of each square, less what lies beyond
    the window."""
    n = lengths.astype(np.float64)
    beyond = np.maximum(n - window, 0) if window else np.zeros_like(n)
    return float((n * n - beyond * beyond).sum() / 2)


def costs(
    shape: LlamaConfig,
    specs: Mapping[str, LoraSpec],
    active: Sequence[str],
    trainable: Sequence[str],
    head_labels: int,
    remat: str,
) -> tuple[Cost, Cost]:
    """Returns what an update costs the model and the hardware; the arguments are those of `flops`.

    Gradients go through all layers or none: where an adapter is in some layers only, the scan still walks all.
    """
    present = ["base", "head", *(f"adapter/{name}" for name in active)]
    trained = set().union(*(partition.matched(pattern, present) for pattern in trainable))
    base, below = "base" in trained, bool(trained - {"head"})
    again = _AGAIN[remat] if below else ()
    model = hardware = 0.0
    for name in MODULES:
        features_in, features_out = shape.features(name)
        kernel = shape.layers * features_in * features_out * (2 + 2 * below + 2 * base)
        repeated = 2 * shape.layers * features_in * features_out * (name in again)
        model += kernel
        hardware += kernel + repeated
        for adapter in active:
            spec, learns = specs[adapter], f"adapter/{adapter}" in trained
            ranks = [size.rank if size else 0 for size in _sizes(spec, name, shape.layers)]
            # A PiSSA adapter has what it started from beside it, frozen.
            times = 2 + 2 * below + 2 * learns + (spec.init != "lora") * (2 + 2 * below)
            model += sum(ranks) * (features_in + features_out) * times
            # In the stack, every layer is as wide as the widest. B's gradient needs x A again, and its product not.
            width = shape.layers * max(ranks)
            hardware += width * (features_in + features_out) * times
            if name in again:
                hardware += 2 * width * (features_in + features_out) * (1 + (spec.init != "lora"))
            elif learns and remat not in ("none", "save_dots"):
                hardware += 2 * width * features_in
    pair = shape.layers * shape.heads * shape.head_dim
    of_head = shape.embed * head_labels * (2 + 2 * below + 2 * ("head" in trained))
    unembedding = 0 if head_labels else shape.embed * shape.vocab * (2 + 2 * below + 2 * base)
    return (
        Cost(model + unembedding, pair * (4 + 8 * below), of_head),
        Cost(hardware + unembedding, pair * (4 + 10 * below + 4 * ("attention" in again)), of_head),
    )


def _sizes(spec: LoraSpec, name: str, layers: int) -> list:
    return [spec.size_of(module_name(name, layer)) for layer in range(layers)]
