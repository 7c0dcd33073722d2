"""AdamW with a linear warm-up, and then a linear decay to zero or none."""

import jax
import optax
from flax import nnx

from jaxlora.errors import one_of

Scalar = float | jax.Array


def schedule(peak: float, updates: int, warmup: float, decay: str) -> optax.Schedule:
    """Returns the learning rate by update: up to `peak` over the share `warmup` of the updates, then `linear`ly down to
    zero, or `constant`.

    The published code passed the share where a number of updates belonged, so it never warmed up, and counted the
    decay in micro-batches, so it hardly decayed (paper section 1.7): `warmup` 0 and "constant" come close to it.

    Raises:
      UserError: `decay` is neither.
    """
    rising = max(1, round(warmup * updates))
    end = {"linear": 0.0, "constant": peak}[one_of("config.decay", decay, ("linear", "constant"))]
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / rising, peak, rising - 1),
            optax.linear_schedule(peak, end, max(1, updates - rising + 1)),
        ],
        [rising - 1],
    )


def make_optimizer(
    rate: optax.Schedule, weight_decay: Scalar, clip: Scalar, b_rate: Scalar = 1.0
) -> optax.GradientTransformation:
    """Returns AdamW (b1 0.9, b2 0.999, epsilon 1e-8) with decoupled weight decay.

    Args:
      clip: the gradient's global norm; 0 does not clip.
      weight_decay, clip, b_rate: numbers, or scalars of a traced program.
      b_rate: the learning rate of every adapter's B (and DoRA magnitude) over the others' (LoRA+, Hayou et al. 2024,
        with PEFT's choice of parameters).
    """
    steps = [optax.clip_by_global_norm(clip)] if not isinstance(clip, int | float) or clip else []
    steps.append(optax.adamw(rate, weight_decay=weight_decay))
    if not isinstance(b_rate, int | float) or b_rate != 1.0:
        steps.append(optax.masked(optax.scale(b_rate), _is_b))
    return optax.chain(*steps) if len(steps) > 1 else steps[0]


def _is_b(params: nnx.State) -> nnx.State:
    return nnx.from_flat_state(
        [(p, leaf.replace("adapters" in p and p[-1] in ("b", "magnitude"))) for p, leaf in nnx.to_flat_state(params)]
    )
