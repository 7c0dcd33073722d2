"""Text generation: greedy, or sampled with temperature and top-p, batched, with a key-value cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding


def make_generate(
    definition: nnx.GraphDef,
    active: tuple[str, ...],
    new_tokens: int,
    stop: tuple[int, ...],
    temperature: float = 0.0,
    top_p: float = 1.0,
    out_shardings: NamedSharding | None = None,
) -> Callable:
    """Returns `generate(state, tokens, lengths, key) -> [batch, new_tokens]`, jitted.

    `tokens: [batch, length]` are prompts padded on the left (see `pad_left`), `lengths: [batch]` their lengths. A row
    that has met one of `stop` goes on with it.

    Args:
      active: names of the adapters that enter the forward pass.
      stop: tokens that end a text.
      temperature: 0 takes the most probable token; else the logits are divided by it.
      top_p: samples among the most probable tokens that together reach this probability (Holtzman et al. 2020).
      out_shardings: where the result is to lie; the batch lies where `tokens` and `lengths` do.
    """
    stops = jnp.asarray(stop or (-1,))

    def generate(state: nnx.State, tokens: jax.Array, lengths: jax.Array, key: jax.Array) -> jax.Array:
        model = nnx.merge(definition, state)
        batch, length = tokens.shape
        slots = jnp.arange(length + new_tokens)
        there = slots >= (length - lengths)[:, None]
        positions = jnp.maximum(jnp.arange(length) - (length - lengths)[:, None], 0)
        segments = there[:, :length].astype(jnp.int32)
        hidden, cache = model.prefill(tokens, segments, positions, length + new_tokens, active)
        out = jnp.zeros((batch, new_tokens), jnp.int32)

        def going_on(carry):
            number, _, done, *_ = carry
            return (number < new_tokens) & ~done.all()

        def step(carry):
            number, logits, done, last, out, cache = carry
            token = jnp.where(done, last, choose(logits, jax.random.fold_in(key, number)))
            done = done | jnp.isin(token, stops)
            out = out.at[:, number].set(token)
            slot = length + number
            hidden, cache = model.decode(
                token[:, None], (lengths + number)[:, None], cache, slot, there & (slots <= slot), active
            )
            return number + 1, model.logits(hidden)[:, 0], done, token, out, cache

        start = (0, model.logits(hidden[:, -1:])[:, 0], jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32), out, cache)
        number, _, _, last, out, _ = jax.lax.while_loop(going_on, step, start)
        return jnp.where(jnp.arange(new_tokens) < number, out, last[:, None])

    def choose(logits: jax.Array, key: jax.Array) -> jax.Array:
        if temperature == 0.0:
            return logits.argmax(axis=-1).astype(jnp.int32)
        return jax.random.categorical(key, nucleus(logits / temperature, top_p), axis=-1).astype(jnp.int32)

    return jax.jit(generate, out_shardings=out_shardings)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Returns `logits: [batch, vocab]` with minus infinity outside the fewest tokens that reach `top_p`; tokens as
    probable as the last of them stay too."""
    order = jnp.argsort(-logits, axis=-1)
    sorted_logits = jnp.take_along_axis(logits, order, axis=-1)
    probabilities = jax.nn.softmax(sorted_logits, axis=-1)
    kept = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
    smallest = jnp.min(jnp.where(kept, sorted_logits, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= smallest, logits, -jnp.inf)


def pad_left(prompts: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens `[batch, length]`, lengths `[batch]`) of prompts, padded with 0 on the left."""
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    return tokens, np.asarray([len(prompt) for prompt in prompts], np.int32)
