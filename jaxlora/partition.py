"""Names decide what is trained.

Every parameter is in exactly one partition: `base`, `adapter/<name>`, `initial/<name>` (what an adapter that starts
from the base's weights subtracts, see PiSSA in `models/lora.py`; never trained) or `head`. A list of patterns names
the trainable partitions; from these names follow, here and once, the (train, frozen) split of the step and with it the
optimizer state, the same decision as an optax mask, what a checkpoint stores, and the table printed at start.

A pattern is a partition (`head`, `adapter/clinical`), an adapter's bare name (`clinical`), or a wildcard
(`adapter/*`).
"""

import fnmatch
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from jaxlora.errors import UserError, nearest


def partition_of(path: tuple[str, ...]) -> str:
    """Returns the partition of the parameter at `path`, e.g. ("blocks", "q_proj", "adapters", "clinical", "a")."""
    if path[0] == "head":
        return "head"
    if "adapters" in path:
        name, leaf = path[path.index("adapters") + 1 :][:2]
        return f"initial/{name}" if leaf == "initial" else f"adapter/{name}"
    return "base"


def partitions(model: nnx.Module) -> tuple[str, ...]:
    """Returns the names of the model's partitions, sorted."""
    return tuple(sorted({partition_of(path) for path, _ in nnx.to_flat_state(nnx.state(model))}))


def trainable_partitions(model: nnx.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Returns the partitions that `patterns` name.

    Raises:
      UserError: a pattern matches no partition of the model, or there is no pattern.
    """
    present, chosen = _present(model), set()
    for pattern in patterns:
        named = matched(pattern, present)
        if not named:
            raise UserError(f"config.trainable: {pattern!r} matches no partition{nearest(pattern, present)}")
        chosen |= named
    if not chosen:
        raise UserError(f"config.trainable is empty: name what is to be trained, of {', '.join(present)}")
    return frozenset(chosen)


def stored_partitions(model: nnx.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Returns the partitions that a checkpoint of the run holds: all but the base, and the base too where it is
    trained."""
    return frozenset(name for name in partitions(model) if name != "base" or trains_base(patterns))


def trains_base(patterns: Sequence[str]) -> bool:
    """Returns whether `patterns` name the base, as in full fine-tuning."""
    return any("base" in matched(pattern, ["base"]) for pattern in patterns)


def _present(model: nnx.Module) -> list[str]:
    """The partitions that can be trained."""
    return [name for name in partitions(model) if not name.startswith("initial/")]


def matched(pattern: str, present: Sequence[str]) -> set[str]:
    """Returns those of the partitions `present` that a pattern names."""
    return {*fnmatch.filter(present, pattern), *fnmatch.filter(present, f"adapter/{pattern}")}


def mask(model: nnx.Module, patterns: Sequence[str]) -> nnx.State:
    """Returns the model's state with True for each trainable parameter and False for each frozen one.

    It fits `optax.masked` and, mapped to labels, `optax.partition` over all parameters.
    """
    chosen = trainable_partitions(model, patterns)
    flat = [(path, leaf.replace(partition_of(path) in chosen)) for path, leaf in nnx.to_flat_state(nnx.state(model))]
    return nnx.from_flat_state(flat)


def split(model: nnx.Module, patterns: Sequence[str]) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits the model into (definition, train, frozen); `nnx.merge` of the three gives it back.

    Gradients are taken with respect to `train` alone and the optimizer sees nothing else, so a frozen weight has
    neither gradient nor optimizer state, whatever is logged.
    """
    chosen = trainable_partitions(model, patterns)
    return nnx.split(model, lambda path, _: partition_of(path) in chosen, ...)


def items(state: nnx.State, chosen: Sequence[str]) -> list[tuple[tuple[str, ...], nnx.Variable]]:
    """Returns (path, parameter) of what lies in the partitions `chosen` of a model's state."""
    return [(path, leaf) for path, leaf in nnx.to_flat_state(state) if partition_of(path) in chosen]


def select(state: nnx.State, chosen: Sequence[str]) -> nnx.State:
    """Returns the part of a model's state that lies in the partitions `chosen`."""
    return nnx.from_flat_state(items(state, chosen))


def _parameters(path: tuple[str, ...], leaf: nnx.Variable) -> int:
    """How many parameters a leaf holds: two in a byte of nf4 codes, and the scales of a quantised kernel are none."""
    if path[-1] == "scales":
        return 0
    return math.prod(leaf.shape) * (2 if path[-1] == "codes" and leaf.dtype == jnp.uint8 else 1)


def counts(model: nnx.Module) -> dict[str, int]:
    """Returns how many parameters each partition of a model has, which may be of shapes alone (`nnx.eval_shape`)."""
    found: dict[str, int] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        name = partition_of(path)
        found[name] = found.get(name, 0) + _parameters(path, leaf)
    return found


def table(model: nnx.Module, active: Sequence[str], patterns: Sequence[str]) -> str:
    """Returns the table of partitions printed at the start of a run: parameters, active, trainable."""
    chosen = trainable_partitions(model, patterns)
    lines = [f"{'partition':<24}{'parameters':>16}  active  trainable"]
    for name, count in sorted(counts(model).items()):
        is_active = name in ("base", "head") or name.split("/")[1] in active
        lines.append(f"{name:<24}{count:>16,}  {'yes' if is_active else 'no':<6}  {'yes' if name in chosen else 'no'}")
    return "\n".join(lines)
