"""The work of a run, counted by hand: what the method needs (model), and what the program does (hardware).

Per token, with P the parameters of the matrix products (the unembedding among them, the embedding's look-up not) and
p those of an adapter:

    forward                     2 P                  2 p for each active adapter
    backward to activations     2 P                  2 p likewise
    backward to weights         none: P is frozen    2 p for each trained adapter

so a step costs 4 P + 6 p (4 p for an adapter that is active and frozen), and not the 6 P of full training; a head on a
frozen model costs 2 P, for no gradient goes below it. Causal attention adds 3 * layers * 2 * length * heads * head_dim
for a note of `length` tokens: two products forward, four backward, half of the square. A BERT's attention looks both
ways and is of the whole square. A virtual token is a position like any other; an adaptation prompt is two products of
every head with its `length` vectors, forward, and as many backward to the query and to the vectors.

Hardware adds what is computed a second time: the forward pass as far as `remat` does not save it (down_proj's product
is no part of that, since nothing in the backward pass reads it; what reads a BERT's last product is a norm), and the
attention weights, which every kernel of LLaMA makes again from the saved log-sums. It adds the layers below an
adaptation prompt, whose gate is zero there, and the products with zeros and ones that put virtual tokens at their
places. `cost_analysis` of a compiled step cannot be used for either: it counts the body of the scan over layers once.
Not counted: what is done once an update (DoRA's norms, AdaLoRA's penalty, the network of a P-tuning, the optimizer),
elementwise operations (the vectors of (IA)^3 among them), logits that are made again where the loss is taken in chunks,
and a BERT's pooler, one product a note.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlora import partition
from jaxlora.models.bases import Shape
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.lora_spec import BERT_MODULES, LoraSpec, module_name
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptFamily
from jaxlora.models.techniques import Spec

_AFTER = ("attention_output", "intermediate", "output")  # of a BERT's block, what comes after the attention
# The products that the backward pass makes again, by remat level.
_AGAIN = {
    "none": (),
    "full": ("q_proj", "k_proj", "v_proj", "attention", "o_proj", "gate_proj", "up_proj", *BERT_MODULES),
    "offload": ("o_proj", "gate_proj", "up_proj", *_AFTER),
    "save_qkv": ("o_proj", "gate_proj", "up_proj", *_AFTER),
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
    shape: Shape,
    specs: Mapping[str, Spec],
    active: Sequence[str],
    trainable: Sequence[str],
    length: int,
    head_labels: int,
    remat: str,
) -> Flops:
    """Returns the FLOPs per token of an update whose rows are one note each of `length` tokens, virtual ones apart.

    Args:
      specs: adapters by name. active: those in the forward pass. trainable: patterns of partitions.
      head_labels: number of labels of the head; 0 is the language-model loss.
      remat: a level of `config.remat`.
    """
    model, hardware = costs(shape, specs, active, trainable, head_labels, remat)
    positions = length + sum(specs[name].virtual_tokens for name in active if isinstance(specs[name], PromptFamily))
    of_row = positions, pairs(np.asarray([positions]), shape.window), 1
    return Flops(model.of(*of_row) / length, hardware.of(*of_row) / length)


def pairs(lengths: np.ndarray, window: int = 0) -> float:
    """Returns how many pairs of query and key notes of these lengths have: half of each square, less what lies beyond
    the window."""
    n = lengths.astype(np.float64)
    beyond = np.maximum(n - window, 0) if window else np.zeros_like(n)
    return float((n * n - beyond * beyond).sum() / 2)


def costs(
    shape: Shape,
    specs: Mapping[str, Spec],
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
    low_rank = [name for name in active if isinstance(specs[name], LoraSpec)]
    if remat in ("offload", "save_qkv"):
        # The gradient of an (IA)^3 vector reads the product before it is scaled; what is saved is scaled.
        learning = [specs[name] for name in active if f"adapter/{name}" in trained]
        again += tuple(name for s in learning if isinstance(s, Ia3Spec) for name in s.scaled_outputs(shape.layers))
    model = hardware = 0.0
    for adapter in [name for name in active if isinstance(specs[name], PromptFamily)]:
        own = _of_prompt(shape, specs[adapter], below, f"adapter/{adapter}" in trained, remat)
        model, hardware = model + own[0], hardware + own[1]
    for name in shape.modules:
        features_in, features_out = shape.features(name)
        kernel = shape.layers * features_in * features_out * (2 + 2 * below + 2 * base)
        repeated = 2 * shape.layers * features_in * features_out * (name in again)
        model += kernel
        hardware += kernel + repeated
        for adapter in low_rank:
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
    pair = shape.layers * shape.heads * shape.head_dim * (1 if shape.causal else 2)
    # LLaMA's kernels keep no weights, and make them again in the backward pass; a BERT's are kept where all is.
    weights = 2 * below * (shape.causal or remat != "none")
    of_head = shape.embed * head_labels * (2 + 2 * below + 2 * ("head" in trained))
    unembedding = 0 if head_labels else shape.embed * shape.vocab * (2 + 2 * below + 2 * base)
    return (
        Cost(model + unembedding, pair * (4 + 8 * below), of_head),
        Cost(hardware + unembedding, pair * (4 + 8 * below + weights + 4 * ("attention" in again)), of_head),
    )


def _of_prompt(shape: Shape, spec: PromptFamily, below: bool, learns: bool, remat: str) -> tuple[float, float]:
    """What an adapter of the prompt family costs every position, the model and the hardware."""
    if isinstance(spec, AdaptationPromptSpec):
        size = 2 * spec.length * shape.heads * shape.head_dim
        times = 2 + 2 * below + 2 * learns
        # "save_dots" saves no product of a batch; of the scores alone it has no need but for the weights.
        repeated = below * {"none": 0, "save_dots": 1}.get(remat, 2)
        return spec.layers * size * times, shape.layers * size * (times + repeated)
    if isinstance(spec, PrefixSpec):
        size = spec.virtual_tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim
        return 0.0, size * (2 + 2 * learns + 2 * (below and "k_proj" in _AGAIN[remat]))
    return 0.0, spec.virtual_tokens * shape.embed * (2 + 2 * learns)


def _sizes(spec: LoraSpec, name: str, layers: int) -> list:
    return [spec.size_of(module_name(name, layer)) for layer in range(layers)]
