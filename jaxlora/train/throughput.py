"""How fast a run is, counted honestly: real tokens and not padding, wall time with data and not compilation."""

import time

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora.config import virtual_tokens
from jaxlora.data.examples import ANNOTATED
from jaxlora.models.bases import Shape
from jaxlora.train.assemble import adapter_specs
from jaxlora.train.flops import costs, pairs
from jaxlora.train.peak import peak_of

SPENT_ON = ("data", "update", "validation", "save")


class Throughput:
    """Counts tokens, work and wall time from `start` on.

    A rate is over the time of the updates and of the waiting for their data, not of validation and saving, which are
    counted apart. What the host waits for data while the device still computes counts as waiting for data.

    Args:
      config, shape, kind: of the run: its config, its model and its objective.
      labels: of the head; 0 is the language-model loss.
      mesh: its devices.
    """

    def __init__(self, config: ConfigDict, shape: Shape, kind: str, labels: int, mesh: Mesh):
        specs = adapter_specs(config, shape.layers, shape.modules)
        self._costs = costs(shape, specs, config.active, config.trainable, labels, config.remat)
        self._window, self._every_token = shape.window, kind in ANNOTATED
        self._virtual = virtual_tokens(config)
        # Before the first update, whose activations leave no room on a device that a run just fits.
        self.peak = peak_of(mesh.devices.flatten().tolist(), config.dtype)
        self.notes = self.real = self.padded = 0
        self.model = self.hardware = 0.0
        self.seconds = dict.fromkeys(SPENT_ON, 0.0)
        self._now = "update"
        self._since: float | None = None

    def start(self) -> None:
        """Starts counting: after the first update, which compiles."""
        self._since = time.perf_counter()

    def enter(self, what: str) -> None:
        """Says what the time is spent on from now on, one of `SPENT_ON`."""
        if self._since is not None:
            now = time.perf_counter()
            self.seconds[self._now] += now - self._since
            self._since = now
        self._now = what

    def add(self, lengths: np.ndarray, positions: int) -> None:
        """Counts one update.

        Args:
          lengths: tokens of each of its notes, virtual ones apart, which cost as much and count as padding.
          positions: of its rows; 0 where no token goes through the model, but kept features of the notes do.
        """
        if self._since is None:
            return
        self.notes += len(lengths)
        if not positions:
            return
        real = int(lengths.sum())
        positions_of_notes = lengths + self._virtual
        places = real if self._every_token else len(lengths)
        work = int(positions_of_notes.sum()), pairs(positions_of_notes, self._window), places
        self.real += real
        self.padded += positions
        self.model += self._costs[0].of(*work)
        self.hardware += self._costs[1].of(*work)

    def rates(self) -> dict[str, float]:
        """Returns the rates so far, and the seconds by what they were spent on; nothing where nothing was counted."""
        if not self.notes:
            return {}
        self.enter(self._now)
        seconds = (self.seconds["data"] + self.seconds["update"]) or float("inf")
        spent = {f"seconds/{name}": value for name, value in self.seconds.items()}
        if not self.padded:
            return {"notes_per_second": self.notes / seconds, **spent}
        return {
            "notes_per_second": self.notes / seconds,
            "real_tokens_per_second": self.real / seconds,
            "padded_tokens_per_second": self.padded / seconds,
            "padding": 1.0 - self.real / self.padded,
            "model_flops_per_second": self.model / seconds,
            "mfu": self.model / seconds / self.peak.rate,
            "hfu": self.hardware / seconds / self.peak.rate,
            **spent,
        }

    def line(self) -> str:
        """Returns what a run prints at its end; "" where nothing was counted."""
        if not self.notes:
            return ""
        rates, whole = self.rates(), sum(self.seconds.values())
        parts = [f"{rates['notes_per_second']:,.1f} notes/s"]
        if self.padded:
            parts = [
                f"{rates['real_tokens_per_second']:,.0f} real tokens/s (padding {rates['padding']:.1%})",
                f"MFU {rates['mfu']:.1%}, HFU {rates['hfu']:.1%} of {self.peak.rate / 1e12:,.3g} TFLOP/s "
                f"({self.peak.source})",
            ]
        waited = {"data wait": "data", "validation": "validation", "save": "save"}
        return ", ".join([*parts, *(f"{name} {self.seconds[of] / whole:.1%}" for name, of in waited.items())])
