"""Several training runs side by side in one program, each with its own data, log and checkpoints.

Every member keeps its own count of updates, so members that were interrupted at different ones go on side by side, and
a member that has made all of its own, or whose loss is no number any more, stands still while the others go on.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jaxlora import partition
from jaxlora.models.llama import Llama
from jaxlora.terminal import tell, warn
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer, schedule
from jaxlora.train.run import Keep, NotFinite, Run, Training
from jaxlora.train.step import TrainState, init_state
from jaxlora.train.termination import Terminated, Termination
from jaxlora.train.throughput import Throughput
from jaxlora.train.together import Clock, Settings, Together, template_config


def fit_together(
    members: Sequence[Training],
    template: Llama,
    settings: Settings,
    objective: Objective,
    mesh: Mesh,
    allow_base_mismatch: bool = False,
    keep: Keep | None = None,
) -> dict[str, str]:
    """Trains every member to its last update, each from its last checkpoint, and gives what its own run would.

    Args:
      members: each with its own adapters and head, over the base of all; `validate` is given the template's state.
      template, settings, objective: as in `Together`.
      allow_base_mismatch: goes on from checkpoints of another base or tokenizer.
      keep: as in `loop.fit`, given the template's state.

    Returns:
      What stopped the members that did not get there, by name.
    """
    moments: dict[Any, Any] = {}
    runs = [_Member(member, mesh, allow_base_mismatch, moments) for member in members]
    together = _joined(runs, template, settings, objective, mesh)
    shared = template_config([run.training.config for run in runs])
    throughput = Throughput(shared, template.config, objective.kind, settings.labels.shape[1], mesh)
    left = max(run.updates - run.step for run in runs)
    bar = tqdm(total=left, desc=f"training {len(runs)} members", unit="update", disable=jax.process_index() > 0)
    with Termination(mesh) as termination, contextlib.ExitStack() as ending:
        for part in (*runs, bar):
            ending.callback(part.close)
        program = _Program(runs, together, settings, termination, throughput, bar)
        program.begin(keep)
        program.save([number for number, run in enumerate(runs) if run.unscored])  # a SIGTERM left out their validation
        first, unchecked = True, []
        while any(run.running for run in runs) and not termination.noticed:
            clock, metrics = program.update()
            unchecked.append((clock, metrics))
            stopping = termination.asked()
            saving = [n for n, run in enumerate(runs) if clock.running[n] and (run.due or stopping)]
            # One update stays in flight, so that checking the losses does not make the device wait for the host.
            for made in unchecked if saving else unchecked[:-1]:
                _log(runs, *made)
            unchecked = [] if saving else unchecked[-1:]
            bar.update()
            if saving:
                program.save([number for number in saving if runs[number].failure is None])
                if termination.noticed and not stopping:  # heard in a validation: the others were not to be saved yet
                    program.save([number for number, run in enumerate(runs) if run.running and number not in saving])
            if first:
                jax.block_until_ready(together.state)
                throughput.start()
                first = False
    if line := throughput.line():
        tell(line)
    _say_what_is_left(runs)
    return {run.training.name: run.failure for run in runs if run.failure}


def _joined(
    runs: Sequence["_Member"], template: Llama, settings: Settings, objective: Objective, mesh: Mesh
) -> Together:
    """Returns the program of the runs, which has their states from now on."""
    configs = [run.training.config for run in runs]
    states, frozen = [run.state for run in runs], [partition.select(run.frozen, run.stored) for run in runs]
    together = Together(template, states, frozen, configs, settings, objective, mesh)
    for run in runs:
        run.state = run.frozen = None
    return together


@dataclasses.dataclass
class _Program:
    """The runs while one program trains them all."""

    runs: Sequence["_Member"]
    together: Together
    settings: Settings
    termination: Termination
    throughput: Throughput
    bar: tqdm

    def begin(self, keep: Keep | None) -> None:
        """Gives every run its batches, with kept features where `keep` is given: in all of them, also one that has
        ended, so that their batches have the same arrays."""
        for number, run in enumerate(self.runs):
            batches = run.training.batches
            if keep:
                with contextlib.suppress(Terminated):
                    batches = keep(batches, self.together.model(number), self.termination.check)
            run.begin(batches)

    def update(self) -> tuple[Clock, dict[str, jax.Array]]:
        """Begins the next update of every run that has one; returns its clock and its metrics."""
        clock = Clock(
            np.asarray([run.step + 1 for run in self.runs], np.int32),
            np.asarray([run.rate(run.step + 1) for run in self.runs], np.float32),
            np.asarray([run.running for run in self.runs]),
        )
        self.throughput.enter("data")
        batch = _stacked([run.next_batch() for run in self.runs], self.settings)
        self.throughput.enter("update")
        metrics = self.together.update(batch, clock)
        for run in self.runs:
            if run.running:
                run.advance(self.throughput)
        return clock, metrics

    def save(self, numbers: Sequence[int]) -> None:
        """Validates and saves the runs of these numbers; one with a number that is not finite stands still."""
        jax.block_until_ready(self.together.state)
        for number in numbers:
            run, (state, own) = self.runs[number], self.together.member(number)
            whole, model = nnx.merge_state(state.params, own), self.together.model(number)
            with run.stopped_by_what_is_not_finite():
                if found := run.save(state, whole, model, self.termination, self.throughput):
                    self.bar.write(f"{run.training.name}, update {run.step}: {found}")


def _say_what_is_left(runs: Sequence["_Member"]) -> None:
    """Tells the user what SIGTERM kept the members from."""
    if any(run.running for run in runs):
        warn("stopped by SIGTERM, what was trained is saved; the same command goes on from there")
    if left_out := [run.training.name for run in runs if run.failure is None and not run.running and run.unscored]:
        warn(f"SIGTERM left out the last validation of {', '.join(left_out)}; the same command makes it up")


class _Member(Run):
    """A run that stands still where a number of its is not finite, and says why in `failure`.

    Args:
      moments: fresh states of the optimizer by form, shared by the members made before and added to by this one.
    """

    def __init__(self, training: Training, mesh: Mesh, allow_base_mismatch: bool, moments: dict[Any, Any]):
        self.failure: str | None = None
        config = training.config
        _, params, frozen = partition.split(training.model, config.trainable)
        rate = schedule(
            config.learning_rate, len(training.batches), config.warmup, config.decay, config.paper_accumulate
        )
        optimizer = make_optimizer(rate, config.weight_decay, config.clip, config.b_rate)
        leaves, structure = jax.tree.flatten(jax.eval_shape(optimizer.init, params))
        form = structure, tuple(leaf.shape for leaf in leaves)
        if form not in moments:
            moments[form] = init_state(params, optimizer, mesh).optimizer
        super().__init__(training, TrainState(params, moments[form]), frozen, rate, allow_base_mismatch)

    @property
    def running(self) -> bool:
        return self.failure is None and super().running

    @contextlib.contextmanager
    def stopped_by_what_is_not_finite(self):
        try:
            yield
        except NotFinite as error:
            self.failure = str(error)


def _log(runs: Sequence[_Member], clock: Clock, metrics: dict[str, jax.Array]) -> None:
    values = jax.device_get(metrics)
    for number, run in enumerate(runs):
        if clock.running[number] and run.failure is None:
            with run.stopped_by_what_is_not_finite():
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
