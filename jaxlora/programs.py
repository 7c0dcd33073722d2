"""Which runs can be trained as one program, and how many of them fit the devices at once."""

import fnmatch
import re
from collections.abc import Iterator, Mapping

import jax
from ml_collections import ConfigDict

from jaxlora.config import flat
from jaxlora.interop.llama_config import ARCHITECTURES, read_json
from jaxlora.train.assemble import model_shape
from jaxlora.train.devices import SHARE, lay_out
from jaxlora.train.memory import activation_bytes, device_limit, state_bytes

OWN = (
    "learning_rate", "seed", "weight_decay", "b_rate", "clip", "warmup", "decay", "class_weights", "epochs",
    "evaluations", "select", "data.name",
)  # fmt: skip
OWN_OF_ADAPTER = ("alpha", "dropout", "rank")


def may_own(field: str) -> bool:
    """Returns whether members that are trained together may differ in a field."""
    return field in OWN or bool(re.fullmatch(rf"adapters\.[^.]+\.({'|'.join(OWN_OF_ADAPTER)})", field))


def why_alone(config: ConfigDict) -> str:
    """Returns why runs of a config cannot be members of one program; "" where they can."""
    if any(fnmatch.fnmatch("base", pattern) for pattern in config.trainable):
        return "config.trainable: the members of a sweep share one frozen base; train a base with `train`"
    for name, adapter in config.adapters.items():
        if (technique := adapter.get("technique", "lora")) != "lora":
            return (
                f"config.adapters.{name} is of technique {technique!r}; the members of a sweep have LoRAs alone: train "
                "each with `train`, or set config.search"
            )
    kind = read_json(config.base).get("model_type") if config.base else "llama"
    if kind not in ARCHITECTURES:
        return f"config.base is of model_type {kind!r}, which does not train together; set config.search, or `train`"
    return ""


def programs(
    configs: Mapping[str, ConfigDict], most: int, labels: Mapping[str, int]
) -> Iterator[dict[str, ConfigDict]]:
    """Yields the runs that are trained as one program, in the order given.

    They differ in fields that members may have for themselves alone, and are `most` at the most, or as many as fit the
    devices by arithmetic, where a device's memory is known. A run that shares its program with none is alone.

    Args:
      labels: of each run's head; 0 is none.
    """
    groups: dict[str, dict[str, ConfigDict]] = {}
    for name, config in configs.items():
        shared = {field: value for field, value in flat(config).items() if not may_own(field)}
        groups.setdefault(repr(sorted(shared.items())), {})[name] = config
    for group in groups.values():
        names, first = list(group), next(iter(group.values()))
        width = 1 if why_alone(first) else min(max(1, most), len(names))
        while width > 1 and not _fits(first, max(labels[name] for name in names), width):
            width -= 1
        for start in range(0, len(names), width):
            yield {name: group[name] for name in names[start : start + width]}


def _fits(config: ConfigDict, labels: int, members: int) -> bool:
    """Returns whether members over one base fit the devices; that they do where a device's memory is not known."""
    limit = device_limit(jax.local_devices()[0])
    if not limit:
        return True
    mesh, shape = lay_out(config, labels, config.trainable, members=members), model_shape(config)
    state = state_bytes(config, shape, labels, mesh, config.trainable, members)
    activations = activation_bytes(config, shape, mesh, 0 if labels else config.loss_chunk, members)
    return sum(state.values()) + activations <= (1 - SHARE) * limit
