"""The fields that decide whether a run fits and how long an update takes, and what arithmetic says of a choice."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora.chips import Chip
from jaxlora.errors import UserError
from jaxlora.models.remat import REMAT
from jaxlora.partition import trains_base
from jaxlora.plan.program import Aim
from jaxlora.plan.roofline import Bound, bound
from jaxlora.train.assemble import adapter_specs, model_shape
from jaxlora.train.flops import flops
from jaxlora.train.memory import activation_bytes, state_bytes
from jaxlora.train.mesh import check_batch, divisors, make_mesh

_QUANTIZED = ("int8", "nf4")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A choice of the fields that leave the method as it is; `quantize` alone changes what is computed."""

    fsdp: int
    remat: str
    accumulate: int
    quantize: str

    def applied(self, config: ConfigDict) -> ConfigDict:
        """Returns the config with these fields."""
        changed = ConfigDict(config.to_dict())
        changed.mesh.fsdp, changed.remat = self.fsdp, self.remat
        changed.accumulate, changed.quantize = self.accumulate, self.quantize
        return changed

    def changes(self, other: "Setting") -> list[str]:
        """Returns the flags that make `other` this setting."""
        names = {"fsdp": "mesh.fsdp"}
        return [
            f"--config.{names.get(field.name, field.name)}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


def setting_of(config: ConfigDict, fsdp: int) -> Setting:
    """Returns the setting of a config, whose mesh has `fsdp` devices over which the base is cut."""
    return Setting(fsdp, config.remat, config.accumulate, config.quantize)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What arithmetic says of a setting: bytes on a device at the least, and the least time of an update."""

    setting: Setting
    bytes: int
    bound: Bound


class Estimator:
    """Arithmetic for the settings of one config on one slice, without compiling anything.

    Args:
      devices: of the slice. chip: what they are.
    """

    def __init__(self, config: ConfigDict, aim: Aim, devices: Sequence[jax.Device], chip: Chip):
        self.config, self.aim, self.devices, self.chip = config, aim, devices, chip
        self._state = functools.cache(self._state_bytes)

    def _state_bytes(self, fsdp: int, quantize: str) -> dict[str, int]:
        config = Setting(fsdp, self.config.remat, self.config.accumulate, quantize).applied(self.config)
        return state_bytes(config, model_shape(config), self.aim.labels, self._mesh(fsdp), config.trainable)

    def _mesh(self, fsdp: int) -> Mesh:
        return make_mesh(fsdp, self.config.mesh.tensor, self.devices)

    def of(self, setting: Setting) -> Estimate:
        """Returns the estimate of a setting."""
        config, kinds = setting.applied(self.config), self._state(setting.fsdp, setting.quantize)
        # Logits are left out: how much of a chunk the compiler keeps at one time is its own affair.
        activations = activation_bytes(config, model_shape(config), self._mesh(setting.fsdp))
        base = kinds["base"] * setting.fsdp
        received = 2 * setting.accumulate * (base - kinds["base"])
        time = bound(self.chip, self.flops(config) / len(self.devices), 2 * setting.accumulate * base, received)
        return Estimate(setting, sum(kinds.values()) + activations, time)

    def flops(self, config: ConfigDict) -> float:
        """Returns the FLOPs of an update over all devices, with what is computed again."""
        return per_token(config, self.aim).hardware * config.batch_size * config.data.length

    def settings(self, given: Setting) -> Iterator[Setting]:
        """Yields the settings that the rows of an update allow, quantised ones too where the given one is not.

        "offload" is none of them: its time depends on the link to the host's memory, which no bound here knows.
        """
        ways = len(self.devices) // self.config.mesh.tensor
        frozen = not trains_base(self.config.trainable)
        precisions = ("", *_QUANTIZED) if frozen and not given.quantize else (given.quantize,)
        levels = [level for level in REMAT if level != "offload"]
        parts = divisors(max(1, self.config.batch_size // ways))
        for values in itertools.product(divisors(ways), levels, parts, precisions):
            setting = Setting(*values)
            if setting != given and self._divides(setting):
                yield setting

    def _divides(self, setting: Setting) -> bool:
        try:
            check_batch(self._mesh(setting.fsdp), self.config.batch_size, setting.accumulate)
        except UserError:
            return False
        return True


def per_token(config: ConfigDict, aim: Aim):
    """Returns the FLOPs per token of a config's update, of the model and of the hardware, rows being one note each."""
    shape = model_shape(config)
    specs = adapter_specs(config, shape.layers, shape.modules)
    length = config.data.length
    return flops(shape, specs, tuple(config.active), tuple(config.trainable), length, aim.labels, config.remat)
