"""A trace of a few updates, for xprof, TensorBoard or Perfetto."""

import os
from typing import Any

import jax

from jaxlora import files
from jaxlora.errors import UserError

FIRST, LAST = 3, 5  # counted from where the run starts or goes on: the updates before compile and fill the queues


class Profile:
    """Traces updates `FIRST` to `LAST` of a run into `WORKDIR/profile`, on the first host.

    A trace has the names of operations and of functions of the program, and when they ran; it has no values, so
    nothing of a note.

    Args:
      workdir: the run's folder, "" traces nothing.
      updates: how many the run still makes.

    Raises:
      UserError: that is too few.
    """

    def __init__(self, workdir: str, updates: int):
        if workdir and updates < LAST:
            raise UserError(f"--profile: the run has {updates} updates to go, and {LAST} are needed; leave it out")
        self._folder = os.path.join(workdir, "profile") if workdir and jax.process_index() == 0 else ""
        self._tracing = False

    def at(self, update: int, state: Any) -> None:
        """Starts or stops the trace, where it is time to.

        Args:
          update: the number of the one that comes next, from 1.
          state: what the last one returned; the trace is of whole updates.
        """
        if self._folder and update == FIRST:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        elif self._tracing and update == LAST + 1:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Stops the trace, where one is being made."""
        if self._tracing:
            self._tracing = False
            with files.private():
                jax.profiler.stop_trace()
            print(f"updates {FIRST} to {LAST} are traced in {self._folder}")
