"""AdamW with a linear warm-up and a linear decay to zero."""

import optax


def schedule(peak: float, updates: int, warmup: float) -> optax.Schedule:
    """Returns the learning rate by update: up to `peak` over the share `warmup` of the updates, then down to zero.

    The published code passed the share where a number of updates belonged, so it never warmed up (paper section 1.7).
    """
    rising = max(1, round(warmup * updates))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / rising, peak, rising - 1),
            optax.linear_schedule(peak, 0.0, max(1, updates - rising + 1)),
        ],
        [rising - 1],
    )


def make_optimizer(
    peak: float, updates: int, warmup: float, weight_decay: float, clip: float
) -> optax.GradientTransformation:
    """Returns AdamW (b1 0.9, b2 0.999, epsilon 1e-8) with decoupled weight decay; `clip` 0 does not clip."""
    adamw = optax.adamw(schedule(peak, updates, warmup), weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw
