"""SIGTERM, the notice that a machine is about to be taken away: all hosts of a run stop after the same update."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlora.train.mesh import replicated


class Terminated(Exception):
    """The run is to stop now."""


class Termination:
    """Hears SIGTERM inside a `with` block, once: the next one ends the process at once, as without the block.

    One host that hears it is enough. The hosts agree by a maximum over their devices, whose result is only looked at a
    call later, so that asking does not make the host wait for the devices; one host alone needs no device to know.
    """

    def __init__(self, mesh: Mesh):
        self.noticed = False
        self._devices = NamedSharding(mesh, P(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._vote: jax.Array | None = None
        self._heard = False

    def __enter__(self) -> "Termination":
        self._before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def asked(self) -> bool:
        """Returns whether the run is to stop; all hosts, which call this equally often, are told the same."""
        if jax.process_count() == 1:
            self.noticed = self._heard
        else:
            before, flag = self._vote, np.asarray([self._heard])
            shape = (self._devices.mesh.size,)
            self._vote = self._any(jax.make_array_from_callback(shape, self._devices, lambda _: flag))
            self.noticed = self.noticed or (before is not None and bool(before))
        return self.noticed

    def check(self) -> None:
        """Raises `Terminated` where the run is to stop: for work that can be left half done."""
        if self.asked():
            raise Terminated

    def _hear(self, *_) -> None:
        self._heard = True
        signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
