"""AdamW with a linear warm-up, and then a linear decay to zero or none."""

import optax

from jaxlora.errors import one_of


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


def make_optimizer(rate: optax.Schedule, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """Returns AdamW (b1 0.9, b2 0.999, epsilon 1e-8) with decoupled weight decay; `clip` 0 does not clip."""
    adamw = optax.adamw(rate, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw
