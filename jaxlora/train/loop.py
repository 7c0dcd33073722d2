"""The training run: from the first update, or the last checkpoint, to the last update."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import partition
from jaxlora.data.loader import Batches
from jaxlora.errors import UserError
from jaxlora.models.llama import Llama
from jaxlora.train import checkpoint
from jaxlora.train.checkpoint import UNSCORED, Checkpoints
from jaxlora.train.damage import Damaged, say, writing
from jaxlora.train.logs import RunLog
from jaxlora.train.mesh import put_batch
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer, schedule
from jaxlora.train.profile import Profile
from jaxlora.train.step import TrainState, init_state, make_train_step
from jaxlora.train.termination import Terminated, Termination
from jaxlora.train.throughput import Throughput


def fit(
    config: ConfigDict,
    workdir: str,
    model: Llama,
    objective: Objective,
    batches: Batches,
    validate: Callable[[nnx.State, Callable[[], None]], tuple[float, dict[str, float]]] | None,
    metadata: dict[str, Any],
    mesh: Mesh,
    allow_base_mismatch: bool = False,
    keep: Callable[[Batches, nnx.State, Callable[[], None]], Batches] | None = None,
    profile: bool = False,
) -> None:
    """Trains the partitions of `config.trainable`, saving a checkpoint at every validation; resumes where one is.

    The order of the data, the dropout and the learning rate depend on the number of the update alone, so a run that
    was killed and resumed gives the same bits as one that was not. SIGTERM lets the updates in flight end, leaves a
    validation, saves and returns: that takes at most two updates (and, at the start, their compilation) and one save.

    Args:
      validate: given the model's whole state, returns (score, metrics), the score being larger for better; it calls its
        second argument now and then, which raises `Terminated` to stop it. None where there is no validation split.
      metadata: what the checkpoints belong to.
      allow_base_mismatch: goes on from a checkpoint of another base or tokenizer.
      keep: given the batches, the model's whole state and what `validate` has as its second argument, returns the same
        batches with what the frozen parameters make of their notes computed once; None where that changes with the
        updates.
      profile: traces a few updates into `WORKDIR/profile`.

    Raises:
      UserError: the loss or a gradient is not finite; the message says at which update. Or a checkpoint cannot be
        written, or none can be read. What was saved before stays.
    """
    definition, params, frozen = partition.split(model, config.trainable)
    updates = len(batches)
    rate = schedule(config.learning_rate, updates, config.warmup, config.decay)
    optimizer = make_optimizer(rate, config.weight_decay, config.clip, config.b_rate)
    state = init_state(params, optimizer, mesh)
    dropout = any(config.adapters[name].dropout for name in config.active)
    update = make_train_step(definition, optimizer, objective, dropout, state, mesh, config.accumulate)
    stored = partition.stored_partitions(model, config.trainable)

    checkpoints, data = Checkpoints(workdir, config.keep), None
    start = checkpoints.latest or 0
    if start:
        of_base = ("base", "tokenizer") if allow_base_mismatch else ()
        now = {what: value for what, value in metadata.items() if what not in of_base}
        start, score, (state, frozen, data) = resume(checkpoints, workdir, now, state, frozen, stored)
    guarded = writing(checkpoints.directory, lambda: checkpoints.latest)
    log, tracer = RunLog(workdir, start, config), Profile(workdir if profile else "", updates - start)
    every = max(1, math.ceil(updates / max(1, config.epochs * config.evaluations)))
    throughput = Throughput(config, model.config, objective.kind, len(metadata["labels"]), mesh)
    key, unchecked = jax.random.key(config.seed), []

    def save(step: int, due: bool) -> None:
        """Saves, and validates before where it is due and there is time."""
        throughput.enter("validation")
        whole = nnx.merge_state(state.params, frozen)
        score, values, scored = 0.0, {}, validate is None
        if validate and due and not termination.noticed:
            with contextlib.suppress(Terminated):
                score, values = validate(whole, termination.check)
                scored = True
        if step == start and not scored:
            return  # it is saved as it was
        size = optax.global_norm(state.params)
        check_finite(step, {"validation score": score, "the parameters' norm": size}, checkpoints.latest)
        throughput.enter("save")
        if due and scored:
            log.write(step, {**{f"validation/{k}": v for k, v in values.items()}, **throughput.rates()})
        guarded(log.flush)()  # before the checkpoint: what is logged after the last one is dropped on resuming
        if step == start:
            checkpoints.rescore(step, score)
        else:
            kept, score = partition.select(whole, stored), score if scored else UNSCORED
            checkpoints.save(step, kept, state.optimizer, iterator.get_state(), score, metadata)
        if values:
            bar.write(f"update {step}: " + ", ".join(f"validation {k} {v:.4f}" for k, v in values.items()))

    with Termination(mesh) as termination, contextlib.ExitStack() as ending:
        for close in (checkpoints.close, guarded(log.close), tracer.close):
            ending.callback(close)
        if keep and start < updates:
            with contextlib.suppress(Terminated):
                batches = keep(batches, nnx.merge_state(state.params, frozen), termination.check)
        iterator = iter(batches)
        if data:
            iterator.set_state(data)
        bar = tqdm(total=updates, initial=start, desc="training", unit="update", disable=jax.process_index() > 0)
        ending.callback(bar.close)
        if start and score == UNSCORED and (start % every == 0 or start == updates):
            save(start, due=True)  # a SIGTERM had left out its validation
        for step in range(start + 1, updates + 1):
            if termination.noticed:
                break
            tracer.at(step - start, state)
            throughput.enter("data")
            batch = next(iterator)
            throughput.enter("update")
            state, metrics = update(state, frozen, put_batch(mesh, batch), jax.random.fold_in(key, step))
            throughput.add(batches.lengths(step - 1), batch["segments"].size if "segments" in batch else 0)
            unchecked.append((step, metrics))
            due, stopping = step % every == 0 or step == updates, termination.asked()
            saving = due or stopping
            # One update stays in flight, so that checking the loss does not make the device wait for the host.
            for done, values in unchecked if saving else unchecked[:-1]:
                values = check_finite(done, values, checkpoints.latest)
                log.write(done, {**values, "learning_rate": float(rate(done - 1))})
                bar.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
            unchecked = [] if saving else unchecked[-1:]
            bar.update()
            if saving:
                jax.block_until_ready(state)
                save(step, due)
            if step == start + 1:
                jax.block_until_ready(state)
                throughput.start()
    if jax.process_index() == 0 and (line := throughput.line()):
        print(line)
    if termination.noticed and (validate or checkpoints.latest != updates):
        say(_stopped(checkpoints.latest, updates))


def _stopped(latest: int | None, updates: int) -> str:
    """Returns what the user is to know of a run that SIGTERM came to, which has saved `latest`."""
    if not latest:
        return "stopped by SIGTERM before the first update; the same command begins again"
    if latest < updates:
        return f"stopped by SIGTERM at update {latest}, which is saved; the same command goes on from there"
    return f"SIGTERM left out the validation of update {latest}, the last; the same command makes it up"


def resume(checkpoints: Checkpoints, workdir: str, metadata: dict[str, Any], state: TrainState, frozen, stored):
    """Returns what the latest checkpoint that can be read holds: its step, its score and what `_restored` gives.

    Raises:
      UserError: it belongs to something other than `metadata`, or every checkpoint is damaged.
    """
    damaged = {}
    for step in reversed(checkpoints.steps):
        error = None
        try:
            before = checkpoints.metadata(step)
            checkpoint.check_belongs(workdir, before, metadata)
            restored = _restored(checkpoints, step, state, frozen, stored)
        except Damaged as raised:
            error = raised
        if not multihost_utils.process_allgather(np.asarray(error is not None)).any():
            break
        damaged[step] = error or Damaged(checkpoints.directory, step, "cannot be restored by another host")
    else:
        raise damaged[max(damaged)]
    for later, error in damaged.items():
        say(f"checkpoint {later} {error.why}; going on from {step}; delete {checkpoints.set_aside(later)}")
    return step, before["score"], restored


def _restored(checkpoints: Checkpoints, step: int, state: TrainState, frozen: nnx.State, stored):
    """Returns the state, the frozen parameters and the state of the data iterator as they were at a checkpoint."""
    kept = partition.select(nnx.merge_state(state.params, frozen), stored)
    kept, optimizer_state, data = checkpoints.restore(step, kept, state.optimizer)
    return TrainState(_filled(state.params, kept), optimizer_state), _filled(frozen, kept), data


def check_finite(step: int, metrics: dict[str, Any], latest: int | None) -> dict[str, float]:
    """Returns the metrics of an update as numbers.

    Args:
      latest: the last checkpoint, or None.

    Raises:
      UserError: one is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            kept = f"checkpoint {latest} is kept" if latest else "no checkpoint was made before"
            where = " in a new workdir" if latest else ""
            raise UserError(
                f"{name} is {value} at update {step}; {kept}: lower config.learning_rate or set config.clip{where}"
            )
    return values


def _filled(state: nnx.State, values: nnx.State) -> nnx.State:
    """Returns `state` with the leaves of `values` where it has any."""
    given = dict(nnx.to_flat_state(values))
    return nnx.from_flat_state([(path, given.get(path, leaf)) for path, leaf in nnx.to_flat_state(state)])
