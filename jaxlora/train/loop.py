"""The training loop: from the first update, or the last checkpoint, to the last update."""

import contextlib

import jax
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jaxlora.terminal import tell, warn
from jaxlora.train.mesh import put_batch
from jaxlora.train.objective import Objective
from jaxlora.train.profile import Profile
from jaxlora.train.run import Keep, Run, Training
from jaxlora.train.termination import Terminated, Termination
from jaxlora.train.throughput import Throughput
from jaxlora.train.update import make_update


def fit(
    training: Training,
    objective: Objective,
    mesh: Mesh,
    allow_base_mismatch: bool = False,
    keep: Keep | None = None,
    profile: bool = False,
) -> bool:
    """Trains the partitions of `config.trainable`, saving a checkpoint at every validation; resumes where one is.

    The order of the data, the dropout and the learning rate depend on the number of the update alone, so a run that
    was killed and resumed gives the same bits as one that was not. SIGTERM lets the updates in flight end, leaves a
    validation, saves and returns: that takes at most two updates (and, at the start, their compilation) and one save.

    Args:
      allow_base_mismatch: goes on from a checkpoint of another base or tokenizer.
      keep: given the batches, the model's whole state and what `validate` has as its second argument, returns the same
        batches with what the frozen parameters make of their notes computed once; None where that changes with the
        updates.
      profile: traces a few updates into `WORKDIR/profile`.

    Returns:
      Whether the run is complete: its last update made, saved, and validated where there is something to validate on.

    Raises:
      UserError: the loss or a gradient is not finite; the message says at which update. Or a checkpoint cannot be
        written, or none can be read. What was saved before stays.
    """
    config = training.config
    update, *fresh = make_update(config, training.model, objective, len(training.batches), mesh)
    run = Run(training, *fresh, allow_base_mismatch)
    del fresh  # its arrays are donated
    tracer = Profile(training.workdir if profile else "", run.updates - run.start)
    throughput = Throughput(config, training.model.config, objective.kind, len(training.metadata["labels"]), mesh)
    key, unchecked = jax.random.key(config.seed), []

    def save() -> None:
        jax.block_until_ready(run.state)
        whole = nnx.merge_state(run.state.params, run.frozen)
        if found := run.save(run.state, whole, whole, termination, throughput):
            bar.write(f"update {run.step}: {found}")

    with Termination(mesh) as termination, contextlib.ExitStack() as ending:
        ending.callback(run.close)
        ending.callback(tracer.close)
        batches = training.batches
        if keep and run.running:
            with contextlib.suppress(Terminated):
                batches = keep(batches, nnx.merge_state(run.state.params, run.frozen), termination.check)
        run.begin(batches)
        hidden = jax.process_index() > 0
        bar = tqdm(total=run.updates, initial=run.start, desc="training", unit="update", disable=hidden)
        ending.callback(bar.close)
        if run.unscored:
            save()
        while run.running and not termination.noticed:
            tracer.at(run.step + 1 - run.start, run.state)
            throughput.enter("data")
            batch = put_batch(mesh, run.next_batch())
            throughput.enter("update")
            run.state, metrics = update(run.state, run.frozen, batch, jax.random.fold_in(key, run.step + 1))
            run.advance(throughput)
            unchecked.append((run.step, metrics))
            saving = termination.asked() or run.due
            # One update stays in flight, so that checking the loss does not make the device wait for the host.
            for made in unchecked if saving else unchecked[:-1]:
                bar.set_postfix_str(f"loss {run.log(*made)['loss']:.4f}", refresh=False)
            unchecked = [] if saving else unchecked[-1:]
            bar.update()
            if saving:
                save()
            if run.step == run.start + 1:
                jax.block_until_ready(run.state)
                throughput.start()
    if line := throughput.line():
        tell(line)
    if termination.noticed and (training.validate or run.saved != run.updates):
        warn(_stopped(run.saved, run.updates))
    return not run.running and not run.unscored


def _stopped(saved: int | None, updates: int) -> str:
    """Returns what the user is to know of a run that SIGTERM came to, which has saved `saved`."""
    if not saved:
        return "stopped by SIGTERM before the first update; the same command begins again"
    if saved < updates:
        return f"stopped by SIGTERM at update {saved}, which is saved; the same command goes on from there"
    return f"SIGTERM left out the validation of update {saved}, the last; the same command makes it up"
