"""Several training runs side by side in one program, each with its own data, log and checkpoints.

Every member keeps its own count of updates, so members that were interrupted at different ones go on side by side, and
a member that has made all of its own, or whose loss is no number any more, stands still while the others go on.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import partition
from jaxlora.data.loader import Batches
from jaxlora.errors import UserError
from jaxlora.models.llama import Llama
from jaxlora.train.checkpoint import UNSCORED, Checkpoints
from jaxlora.train.damage import say, writing
from jaxlora.train.logs import RunLog
from jaxlora.train.loop import check_finite, resume
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer, schedule
from jaxlora.train.step import TrainState, init_state
from jaxlora.train.termination import Terminated, Termination
from jaxlora.train.throughput import Throughput
from jaxlora.train.together import Clock, Settings, Together, template_config


@dataclasses.dataclass
class Member:
    """One run.

    Attributes:
      name: for messages. workdir, config: its own, as `train` would have them.
      model: with its own adapters and head, over the base of all.
      batches: of its training notes.
      validate: as in `loop.fit`, given the state of the template.
      metadata: what its checkpoints belong to.
    """

    name: str
    workdir: str
    config: ConfigDict
    model: Llama
    batches: Batches
    validate: Callable[[nnx.State, Callable[[], None]], tuple[float, dict[str, float]]] | None
    metadata: dict[str, Any]


def fit_together(
    members: Sequence[Member],
    template: Llama,
    settings: Settings,
    objective: Objective,
    mesh: Mesh,
    allow_base_mismatch: bool = False,
) -> dict[str, str]:
    """Trains every member to its last update, each from its last checkpoint, and gives what its own run would.

    Args:
      template, settings, objective: as in `Together`.
      allow_base_mismatch: goes on from checkpoints of another base or tokenizer.

    Returns:
      What stopped the members that did not get there, by name.
    """
    moments: dict[Any, Any] = {}
    runs = [_Run(member, mesh, allow_base_mismatch, moments) for member in members]
    configs = [member.config for member in members]
    states, frozen = [run.state for run in runs], [run.frozen for run in runs]
    together = Together(template, states, frozen, configs, settings, objective, mesh)
    for run in runs:
        run.state = run.frozen = None  # the program has them now
    throughput = Throughput(template_config(configs), template.config, objective.kind, settings.labels.shape[1], mesh)
    left = max(run.updates - run.step for run in runs)
    bar = tqdm(total=left, desc=f"training {len(runs)} members", unit="update", disable=jax.process_index() > 0)
    with Termination(mesh) as termination, contextlib.ExitStack() as ending:
        for part in (*runs, bar):
            ending.callback(part.close)

        def save(numbers: Sequence[int]) -> None:
            jax.block_until_ready(together.state)
            for number in numbers:
                runs[number].save(*together.member(number), together.model(number), termination, throughput, bar)

        save([number for number, run in enumerate(runs) if run.unscored])  # a SIGTERM had left out their validation
        first, unchecked = True, []
        while any(run.running for run in runs) and not termination.noticed:
            clock = Clock(
                np.asarray([run.step + 1 for run in runs], np.int32),
                np.asarray([run.rate(run.step + 1) for run in runs], np.float32),
                np.asarray([run.running for run in runs]),
            )
            throughput.enter("data")
            batch = _stacked([run.next_batch() for run in runs], settings)
            throughput.enter("update")
            unchecked.append((clock, together.update(batch, clock)))
            for run in runs:
                run.advance(throughput)
            stopping = termination.asked()
            saving = [n for n, run in enumerate(runs) if clock.running[n] and (run.due or stopping)]
            # One update stays in flight, so that checking the losses does not make the device wait for the host.
            for made in unchecked if saving else unchecked[:-1]:
                _log(runs, *made)
            unchecked = [] if saving else unchecked[-1:]
            bar.update()
            if saving:
                save([number for number in saving if runs[number].failure is None])
                if termination.noticed and not stopping:  # heard in a validation: the others were not to be saved yet
                    save([number for number, run in enumerate(runs) if run.running and number not in saving])
            if first:
                jax.block_until_ready(together.state)
                throughput.start()
                first = False
    if jax.process_index() == 0 and (line := throughput.line()):
        print(line)
    if any(run.running for run in runs):
        say("stopped by SIGTERM, what was trained is saved; the same command goes on from there")
    if left_out := [run.member.name for run in runs if run.failure is None and not run.running and run.unscored]:
        say(f"SIGTERM left out the last validation of {', '.join(left_out)}; the same command makes it up")
    return {run.member.name: run.failure for run in runs if run.failure}


class _Run:
    """How far a member is, and where it writes.

    Args:
      moments: fresh states of the optimizer by form, shared by the members made before and added to by this one.
    """

    def __init__(self, member: Member, mesh: Mesh, allow_base_mismatch: bool, moments: dict[Any, Any]):
        self.member, config = member, member.config
        _, params, frozen = partition.split(member.model, config.trainable)
        self.updates = len(member.batches)
        rate = schedule(config.learning_rate, self.updates, config.warmup, config.decay)
        self._rates = np.asarray(rate(np.arange(self.updates)), np.float32)
        optimizer = make_optimizer(rate, config.weight_decay, config.clip, config.b_rate)
        leaves, structure = jax.tree.flatten(jax.eval_shape(optimizer.init, params))
        form = structure, tuple(leaf.shape for leaf in leaves)
        if form not in moments:
            moments[form] = init_state(params, optimizer, mesh).optimizer
        self.state: TrainState | None = TrainState(params, moments[form])
        self._stored = partition.stored_partitions(member.model, config.trainable)
        self._checkpoints, self._iterator = Checkpoints(member.workdir, config.keep), iter(member.batches)
        self.step, score = self._checkpoints.latest or 0, 0.0
        if self.step:
            of_base = ("base", "tokenizer") if allow_base_mismatch else ()
            now = {what: value for what, value in member.metadata.items() if what not in of_base}
            found = resume(self._checkpoints, member.workdir, now, self.state, frozen, self._stored)
            self.step, score, (self.state, frozen, data) = found
            self._iterator.set_state(data)
        self.frozen: nnx.State | None = partition.select(frozen, self._stored)
        self._log = RunLog(member.workdir, self.step)
        self._every = max(1, math.ceil(self.updates / max(1, config.epochs * config.evaluations)))
        self.failure: str | None = None
        self.unscored, self._start = self.due and score == UNSCORED, self.step
        self._batch: dict[str, np.ndarray] | None = None

    @property
    def running(self) -> bool:
        """Whether there is an update to make."""
        return self.failure is None and self.step < self.updates

    @property
    def due(self) -> bool:
        """Whether the last update is followed by a validation and a checkpoint."""
        return self.step % self._every == 0 or self.step == self.updates

    def rate(self, update: int) -> float:
        """Returns the learning rate of an update."""
        return self._rates[min(update, self.updates) - 1]

    def next_batch(self) -> dict[str, np.ndarray]:
        """Returns the batch of the next update; a member that stands still has any."""
        if self.running or self._batch is None:
            self._batch = next(self._iterator)
        return self._batch

    def advance(self, throughput: Throughput) -> None:
        """Counts an update, unless the member stands still."""
        if self.running:
            throughput.add(self.member.batches.lengths(self.step), self._batch["segments"].size)
            self.step += 1

    def log(self, update: int, metrics: dict[str, float]) -> None:
        """Logs an update, or stops the member where a metric of it is no number."""
        if self.failure is None:
            try:
                values = check_finite(update, metrics, self._checkpoints.latest)
            except UserError as error:
                self.failure = str(error)
            else:
                self._log.write(update, {**values, "learning_rate": float(self.rate(update))})

    def save(
        self,
        state: TrainState,
        frozen: nnx.State,
        model: nnx.State,
        termination: Termination,
        throughput: Throughput,
        bar: tqdm,
    ) -> None:
        """Saves the member, unless a parameter is no number; where it is due and there is time, it validates the
        template's state `model` before. The rates that it logs are those of all members together."""
        throughput.enter("validation")
        validate, checkpoints = self.member.validate, self._checkpoints
        score, values, scored = 0.0, {}, validate is None
        if validate and self.due and not termination.noticed:
            with contextlib.suppress(Terminated):
                score, values = validate(model, termination.check)
                scored = True
        self.unscored, again = self.due and not scored, self.step == self._start
        if again and not scored:
            return  # it is saved as it was
        try:
            size = optax.global_norm(state.params)
            check_finite(self.step, {"validation score": score, "the parameters' norm": size}, checkpoints.latest)
        except UserError as error:
            self.failure = str(error)
            return
        throughput.enter("save")
        if self.due and scored:
            of_all = {f"sweep/{name}": value for name, value in throughput.rates().items()}
            self._log.write(self.step, {**{f"validation/{k}": v for k, v in values.items()}, **of_all})
        with writing(checkpoints.directory, lambda: checkpoints.latest):
            self._log.flush()  # before the checkpoint: what is logged after the last one is dropped on resuming
        if again:
            checkpoints.rescore(self.step, score)
        else:
            kept = partition.select(nnx.merge_state(state.params, frozen), self._stored)
            data, score = self._iterator.get_state(), score if scored else UNSCORED
            checkpoints.save(self.step, kept, state.optimizer, data, score, self.member.metadata)
        if values:
            shown = ", ".join(f"validation {name} {value:.4f}" for name, value in values.items())
            bar.write(f"{self.member.name}, update {self.step}: {shown}")

    def close(self) -> None:
        with writing(self._checkpoints.directory, lambda: self._checkpoints.latest):
            self._log.close()
        self._checkpoints.close()


def _log(runs: Sequence[_Run], clock: Clock, metrics: dict[str, jax.Array]) -> None:
    values = jax.device_get(metrics)
    for number, run in enumerate(runs):
        if clock.running[number]:
            run.log(int(clock.number[number]), {name: of_members[number] for name, of_members in values.items()})


def _stacked(batches: Sequence[dict[str, np.ndarray]], settings: Settings) -> dict[str, np.ndarray]:
    """Returns the batches with a leading axis of members; where a task has several labels a note, every member's
    labels are 0 or 1 for each label."""
    if settings.multilabel.any():
        width = settings.labels.shape[1]
        batches = [{**batch, "labels": _hot(batch["labels"], width)} for batch in batches]
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _hot(labels: np.ndarray, width: int) -> np.ndarray:
    if labels.ndim == 2:
        return np.eye(width, dtype=np.float32)[labels]
    return np.pad(labels, ((0, 0), (0, 0), (0, width - labels.shape[2])))
