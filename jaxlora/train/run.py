"""One run and its workdir: how far it is, what it logs, and its checkpoints."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.data.loader import Batches
from jaxlora.errors import UserError
from jaxlora.models.bases import Model
from jaxlora.terminal import warn
from jaxlora.train.belonging import check_belongs
from jaxlora.train.checkpoint import UNSCORED, Checkpoints
from jaxlora.train.damage import Damaged, writing
from jaxlora.train.logs import RunLog
from jaxlora.train.step import TrainState
from jaxlora.train.termination import Terminated, Termination
from jaxlora.train.throughput import Throughput

Keep = Callable[[Batches, nnx.State, Callable[[], None]], Batches]


@dataclasses.dataclass
class Training:
    """What a run trains, on what, and where it writes.

    Attributes:
      workdir, config: as `train` has them.
      model: on its devices.
      batches: of its training notes.
      validate: given the model's whole state, returns (score, metrics), the score being larger for better; it calls its
        second argument now and then, which raises `Terminated` to stop it. None where there is no validation split.
      metadata: what the checkpoints belong to.
      name: of a member of a sweep; "" for a run of its own.
    """

    workdir: str
    config: ConfigDict
    model: Model
    batches: Batches
    validate: Callable[[nnx.State, Callable[[], None]], tuple[float, dict[str, float]]] | None
    metadata: dict[str, Any]
    name: str = ""


class NotFinite(UserError):
    """A number of an update is infinite or none at all."""


class Run:
    """A training that is under way, from its last checkpoint where it has one.

    Args:
      state, frozen: of a fresh run; what a checkpoint holds takes their place.
      rate: the schedule of the learning rate.
      allow_base_mismatch: goes on from a checkpoint of another base or tokenizer.

    Attributes:
      state, frozen: what the updates change, and the rest of the model. The loop that trains keeps them up to date.
      step, start, updates: the last update that was made; the one the run goes on from; how many there are.
      stored: the partitions that a checkpoint holds.
      unscored: the last update should have been followed by a validation, which SIGTERM left out.

    Raises:
      UserError: the checkpoint belongs to something other than `training.metadata`, or every checkpoint is damaged.
    """

    def __init__(
        self,
        training: Training,
        state: TrainState,
        frozen: nnx.State,
        rate: optax.Schedule,
        allow_base_mismatch: bool = False,
    ):
        self.training, config = training, training.config
        self.state, self.frozen = state, frozen
        self.updates = len(training.batches)
        self._rates = np.asarray(rate(np.arange(self.updates)), np.float32)
        self.stored = partition.stored_partitions(training.model, config.trainable)
        self._checkpoints = Checkpoints(training.workdir, config.keep)
        self.step, self._score, self._data = self._checkpoints.latest or 0, 0.0, None
        if self.step:
            self._resume(("base", "tokenizer") if allow_base_mismatch else ())
        self.start = self.step
        self._every = max(1, math.ceil(self.updates / max(1, config.epochs * config.evaluations)))
        self.unscored = self.due and self._score == UNSCORED
        self._log = RunLog(training.workdir, self.step, config)
        self._batch: dict[str, np.ndarray] | None = None

    @property
    def running(self) -> bool:
        """Whether there is an update to make."""
        return self.step < self.updates

    @property
    def due(self) -> bool:
        """Whether the last update is followed by a validation and a checkpoint."""
        return self.step % self._every == 0 or self.step == self.updates

    @property
    def saved(self) -> int | None:
        """The update of the last checkpoint, or None."""
        return self._checkpoints.latest

    def rate(self, update: int) -> float:
        """Returns the learning rate of an update; after the last, that of the last."""
        return float(self._rates[min(update, self.updates) - 1])

    def begin(self, batches: Batches) -> None:
        """Reads `batches` from now on: those of the training, or the same with kept features."""
        self._batches, self._iterator = batches, iter(batches)
        if self._data:
            self._iterator.set_state(self._data)

    def next_batch(self) -> dict[str, np.ndarray]:
        """Returns the batch of the next update; a run that has made all of its own has any."""
        if self.running:
            self._batch = next(self._iterator)
        elif self._batch is None:
            self._batch = next(iter(self._batches))
        return self._batch

    def advance(self, throughput: Throughput) -> None:
        """Counts the update of the last batch."""
        positions = self._batch["segments"].size if "segments" in self._batch else 0
        throughput.add(self.training.batches.lengths(self.step), positions)
        self.step += 1

    def log(self, update: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Logs an update and returns its metrics as numbers.

        Raises:
          NotFinite: one is not finite.
        """
        values = self._finite(update, metrics)
        self._log.write(update, {**values, "learning_rate": self.rate(update)})
        return values

    def save(
        self, state: TrainState, own: nnx.State, model: nnx.State, termination: Termination, throughput: Throughput
    ) -> str:
        """Saves a checkpoint, and validates before where it is due and there is time; returns what was found, for the
        user.

        Args:
          state: what the updates change.
          own: the model's state as it is stored; the base may be missing.
          model: the whole state that `validate` is given.
          throughput: of the program; the rates of one that trains several runs are logged as those of the sweep.

        Raises:
          NotFinite: a parameter or the score is not finite.
          UserError: the checkpoint cannot be written. What was saved before stays.
        """
        throughput.enter("validation")
        validate, checkpoints = self.training.validate, self._checkpoints
        score, values, scored = 0.0, {}, validate is None
        if validate and self.due and not termination.noticed:
            with contextlib.suppress(Terminated):
                score, values = validate(model, termination.check)
                scored = True
        self.unscored, again = self.due and not scored, self.step == self.start
        if again and not scored:
            return ""  # it is saved as it was
        self._finite(self.step, {"validation score": score, "the parameters' norm": optax.global_norm(state.params)})
        throughput.enter("save")
        if self.due and scored:
            prefix = "sweep/" if self.training.name else ""
            rates = {prefix + name: value for name, value in throughput.rates().items()}
            self._log.write(self.step, {**{f"validation/{k}": v for k, v in values.items()}, **rates})
        with self._writing():
            self._log.flush()  # before the checkpoint: what is logged after the last one is dropped on resuming
        if again:
            checkpoints.rescore(self.step, score)
        else:
            kept, score = partition.select(own, self.stored), score if scored else UNSCORED
            data = self._iterator.get_state()
            checkpoints.save(self.step, kept, state.optimizer, data, score, self.training.metadata)
        return ", ".join(f"validation {name} {value:.4f}" for name, value in values.items())

    def close(self) -> None:
        """Ends the log, and waits for the last checkpoint."""
        try:
            with self._writing():
                self._log.close()
        finally:
            self._checkpoints.close()

    def _writing(self) -> contextlib.AbstractContextManager:
        return writing(self._checkpoints.directory, lambda: self._checkpoints.latest)

    def _finite(self, update: int, metrics: dict[str, Any]) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                kept, where = "no checkpoint was made before", ""
                if self.saved:
                    kept, where = f"checkpoint {self.saved} is kept", " in a new workdir"
                remedy = f"lower config.learning_rate or set config.clip{where}"
                raise NotFinite(f"{name} is {value} at update {update}; {kept}: {remedy}")
        return values

    def _resume(self, ignored: tuple[str, ...]) -> None:
        """Takes what the latest checkpoint that can be read holds; those after it are set aside."""
        checkpoints, damaged = self._checkpoints, {}
        metadata = {what: value for what, value in self.training.metadata.items() if what not in ignored}
        for step in reversed(checkpoints.steps):
            error = None
            try:
                before = checkpoints.metadata(step)
                check_belongs(self.training.workdir, before, metadata)
                restored = self._restored(step)
            except Damaged as raised:
                error = raised
            if not multihost_utils.process_allgather(np.asarray(error is not None)).any():
                break
            damaged[step] = error or Damaged(checkpoints.directory, step, "cannot be restored by another host")
        else:
            raise damaged[max(damaged)]
        for later, error in damaged.items():
            warn(f"checkpoint {later} {error.why}; going on from {step}; delete {checkpoints.set_aside(later)}")
        self.step, self._score = step, before["score"]
        self.state, self.frozen, self._data = restored

    def _restored(self, step: int) -> tuple[TrainState, nnx.State, dict[str, int]]:
        kept = partition.select(nnx.merge_state(self.state.params, self.frozen), self.stored)
        kept, optimizer, data = self._checkpoints.restore(step, kept, self.state.optimizer)
        return TrainState(_filled(self.state.params, kept), optimizer), _filled(self.frozen, kept), data


def _filled(state: nnx.State, values: nnx.State) -> nnx.State:
    """Returns `state` with the leaves of `values` where it has any."""
    given = dict(nnx.to_flat_state(values))
    return nnx.from_flat_state([(path, given.get(path, leaf)) for path, leaf in nnx.to_flat_state(state)])
