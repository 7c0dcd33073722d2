"""The training run: from the first update, or the last checkpoint, to the last update."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import partition
from jaxlora.data.loader import Batches
from jaxlora.errors import UserError
from jaxlora.models.llama import Llama
from jaxlora.train import checkpoint
from jaxlora.train.logs import RunLog
from jaxlora.train.mesh import put_batch
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer, schedule
from jaxlora.train.step import TrainState, init_state, make_train_step
from jaxlora.train.throughput import Throughput


def fit(
    config: ConfigDict,
    workdir: str,
    model: Llama,
    objective: Objective,
    batches: Batches,
    validate: Callable[[nnx.State], tuple[float, dict[str, float]]] | None,
    metadata: dict[str, Any],
    mesh: Mesh,
    allow_base_mismatch: bool = False,
) -> None:
    """Trains the partitions of `config.trainable`, saving a checkpoint at every validation; resumes where one is.

    The order of the data, the dropout and the learning rate depend on the number of the update alone, so a run that
    was killed and resumed gives the same bits as one that was not.

    Args:
      validate: given the model's whole state, returns (score, metrics), the score being larger for better; None where
        there is no validation split.
      metadata: what the checkpoints belong to.
      allow_base_mismatch: goes on from a checkpoint of another base or tokenizer.

    Raises:
      UserError: the loss or a gradient is not finite; the message says at which update. What was saved before stays.
    """
    definition, params, frozen = partition.split(model, config.trainable)
    updates = len(batches)
    rate = schedule(config.learning_rate, updates, config.warmup, config.decay)
    optimizer = make_optimizer(rate, config.weight_decay, config.clip, config.b_rate)
    state = init_state(params, optimizer, mesh)
    dropout = any(config.adapters[name].dropout for name in config.active)
    update = make_train_step(definition, optimizer, objective, dropout, state, mesh)
    stored = partition.stored_partitions(model, config.trainable)

    checkpoints, iterator = checkpoint.Checkpoints(workdir), iter(batches)
    start = checkpoints.latest or 0
    if start:
        of_base = ("base", "tokenizer") if allow_base_mismatch else ()
        now = {what: value for what, value in metadata.items() if what not in of_base}
        checkpoint.check_belongs(workdir, checkpoints.metadata(start), now)
        state, frozen, data = _restored(checkpoints, start, state, frozen, stored)
        iterator.set_state(data)
    log = RunLog(workdir, start)
    every = max(1, math.ceil(updates / max(1, config.epochs * config.evaluations)))
    throughput, key, unchecked = Throughput(), jax.random.key(config.seed), []
    bar = tqdm(total=updates, initial=start, desc="training", unit="update", disable=jax.process_index() > 0)
    try:
        for step in range(start + 1, updates + 1):
            batch = next(iterator)
            state, metrics = update(state, frozen, put_batch(mesh, batch), jax.random.fold_in(key, step))
            throughput.add(int((batch["segments"] > 0).sum()), batch["segments"].size)
            unchecked.append((step, metrics))
            saving = step % every == 0 or step == updates
            # One update stays in flight, so that checking the loss does not make the device wait for the host.
            for done, values in unchecked if saving else unchecked[:-1]:
                values = _finite(done, values, checkpoints.latest)
                log.write(done, {**values, "learning_rate": float(rate(done - 1))})
                bar.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
            unchecked = [] if saving else unchecked[-1:]
            bar.update()
            if saving:
                jax.block_until_ready(state)
                throughput.stop()
                whole = nnx.merge_state(state.params, frozen)
                score, values = validate(whole) if validate else (0.0, {})
                size = optax.global_norm(state.params)
                _finite(step, {"validation score": score, "the parameters' norm": size}, checkpoints.latest)
                log.write(step, {**{f"validation/{k}": v for k, v in values.items()}, **throughput.rates()})
                log.flush()  # before the checkpoint: what is logged after the last one is dropped on resuming
                kept = partition.select(whole, stored)
                checkpoints.save(step, kept, state.optimizer, iterator.get_state(), score, metadata)
                if values:
                    bar.write(f"update {step}: " + ", ".join(f"validation {k} {v:.4f}" for k, v in values.items()))
            if saving or step == start + 1:
                jax.block_until_ready(state)
                throughput.start()
    finally:
        bar.close()
        log.close()
        checkpoints.close()


def _restored(checkpoints: checkpoint.Checkpoints, step: int, state: TrainState, frozen: nnx.State, stored):
    """Returns the state, the frozen parameters and the state of the data iterator as they were at a checkpoint."""
    kept = partition.select(nnx.merge_state(state.params, frozen), stored)
    kept, optimizer_state, data = checkpoints.restore(step, kept, state.optimizer)
    return TrainState(_filled(state.params, kept), optimizer_state), _filled(frozen, kept), data


def _finite(step: int, metrics: dict[str, Any], latest: int | None) -> dict[str, float]:
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
