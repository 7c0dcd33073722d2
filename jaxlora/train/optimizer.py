"""AdamW with a linear warm-up, and then a linear decay to zero or none; and the published schedule."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxlora.errors import one_of
from jaxlora.train.allocation import Budget, allocated, orthogonality

Scalar = float | jax.Array


def schedule(peak: float, updates: int, warmup: float, decay: str, paper_accumulate: int = 1) -> optax.Schedule:
    """Returns the learning rate by update, the first being 0.

    "linear" rises to the peak over the share `warmup` of the updates and falls to zero, "constant" stays at the peak.
    "paper" is what the published code did (docs/paper.md): it gave the share as a number of updates, so that the
    first has a rate of 0 and the second the peak, and it counted the decay in micro-batches, `paper_accumulate` of them
    an update, so that the last has about peak * (1 - 1 / paper_accumulate).

    Raises:
      UserError: `decay` is none of these.
    """
    one_of("config.decay", decay, ("linear", "constant", "paper"))
    if decay == "paper":
        batches = updates * paper_accumulate

        def rate(update):
            falling = (batches - update) / max(1.0, batches - warmup)
            return peak * jnp.where(update < warmup, update, falling)

        return rate
    rising = max(1, round(warmup * updates))
    end = {"linear": 0.0, "constant": peak}[decay]
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / rising, peak, rising - 1),
            optax.linear_schedule(peak, end, max(1, updates - rising + 1)),
        ],
        [rising - 1],
    )


def make_optimizer(
    rate: optax.Schedule, weight_decay: Scalar, clip: Scalar, b_rate: Scalar = 1.0, budgets: Sequence[Budget] = ()
) -> optax.GradientTransformation:
    """Returns AdamW (b1 0.9, b2 0.999, epsilon 1e-8) with decoupled weight decay.

    Args:
      clip: the gradient's global norm; 0 does not clip.
      weight_decay, clip, b_rate: numbers, or scalars of a traced program.
      b_rate: the learning rate of every adapter's B (and DoRA magnitude) over the others' (LoRA+, Hayou et al. 2024,
        with PEFT's choice of parameters).
      budgets: of the AdaLoRAs that are trained. Their importance goes by the clipped gradients, as in PyTorch.
    """
    adam = optax.adamw(rate, weight_decay=weight_decay)
    if not isinstance(b_rate, int | float) or b_rate != 1.0:
        adam = optax.chain(adam, optax.masked(optax.scale(b_rate), _is_b))
    for budget in budgets:
        adam = allocated(adam, budget)
    steps = [orthogonality(budget) for budget in budgets]
    steps += [optax.clip_by_global_norm(clip)] if not isinstance(clip, int | float) or clip else []
    return optax.chain(*steps, adam) if steps else adam


def _is_b(params: nnx.State) -> nnx.State:
    return nnx.from_flat_state(
        [(p, leaf.replace("adapters" in p and p[-1] in ("b", "magnitude"))) for p, leaf in nnx.to_flat_state(params)]
    )
