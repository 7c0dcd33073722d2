"""Several runs that differ in settings, or in dataset and task, trained as one program; the verb `sweep` over a list.

Each becomes a run as `train` would have made it, in a folder of its own: `evaluate`, `predict` and `export-adapter`
take it, and `train` goes on with it alone.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora import files, partition
from jaxlora.checks import check_fields
from jaxlora.data.examples import OUTCOMES, Task
from jaxlora.data.loader import Batches
from jaxlora.data.tokens import TokenizedNotes, Tokenizer
from jaxlora.errors import UserError
from jaxlora.eval.features import Features, can_keep
from jaxlora.eval.predict import make_predict_step
from jaxlora.eval.validation import validation
from jaxlora.inputs import class_weights, open_dataset, read_notes
from jaxlora.interop.llama_config import read_config
from jaxlora.plan.refusal import check_fits
from jaxlora.programs import OWN, OWN_OF_ADAPTER, may_own, why_alone
from jaxlora.terminal import tell
from jaxlora.train import checkpoint, run_config
from jaxlora.train.assemble import adapter_specs, assemble
from jaxlora.train.belonging import belongs_to, describe
from jaxlora.train.damage import Damaged
from jaxlora.train.devices import lay_out, share_cores
from jaxlora.train.members import fit_together
from jaxlora.train.mesh import check_batch, own_rows, start_distributed
from jaxlora.train.objective import Objective
from jaxlora.train.run import Training
from jaxlora.train.together import make_settings, template_config


def sweep_run(config: ConfigDict, workdir: str, allow_base_mismatch: bool = False) -> None:
    """Trains the members of `config.sweep`, each in `WORKDIR/NAME`; goes on where they stopped.

    Args:
      allow_base_mismatch: starts from adapters that were trained on another base.

    Raises:
      UserError: a field of the config that is missing or wrong, a member that cannot be trained with the others, or,
        when all others are complete, the members whose loss was no number any more.
    """
    start_distributed()
    configs = member_configs(config)
    if config.wandb:
        raise UserError("config.wandb is set, but Weights & Biases takes one run a process; leave it empty in a sweep")
    ready = read_members(config, workdir, configs)
    if jax.process_index() == 0:
        files.write_json(epath.Path(workdir) / "sweep.json", {name: dict(own) for name, own in members_of(config)})
    failed, _ = train_members(config, workdir, configs, ready, allow_base_mismatch)
    if failed:
        raise UserError("; ".join(f"{name}: {why}" for name, why in failed.items()))


class Ready(NamedTuple):
    """What members are trained on, checked and read.

    Attributes:
      data: of each member its task, its training notes, and its validation notes or None.
    """

    mesh: Mesh
    tokenizer: Tokenizer
    data: dict[str, tuple[Task, TokenizedNotes, TokenizedNotes | None]]


def read_members(config: ConfigDict, workdir: str, configs: Mapping[str, ConfigDict]) -> Ready:
    """Checks that members can be trained together and reads their notes; writes nothing.

    Args:
      config: what they share. configs: of each member's own run; a name is the run's folder under `workdir`.

    Raises:
      UserError: a field that is missing or wrong, members of kinds that do not go together, or a member that was begun
        with other settings.
    """
    for name, own in configs.items():
        check_fields(own)
        if checkpoint.exists(f"{workdir}/{name}"):
            run_config.check_same(f"{workdir}/{name}", own)
    share_cores(config.base)
    datasets = {name: open_dataset(own) for name, own in configs.items()}
    _check_tasks({name: prepared.task for name, prepared in datasets.items()})
    labels = max(len(prepared.task.outputs) for prepared in datasets.values())
    mesh = lay_out(config, labels, config.trainable, members=len(configs), report=tell)
    check_batch(mesh, config.batch_size, config.accumulate)
    check_fits(config, labels, mesh, members=len(configs))
    tokenizer, read, data = Tokenizer(config.base), {}, {}
    for name, own in configs.items():
        what = (own.data.name, own.seed if own.data.mix else None)
        read[what] = read[what] if what in read else read_notes(own, datasets[name], tokenizer)
        data[name] = (datasets[name].task, *read[what])
    return Ready(mesh, tokenizer, data)


def train_members(
    config: ConfigDict,
    workdir: str,
    configs: Mapping[str, ConfigDict],
    ready: Ready,
    allow_base_mismatch: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """Trains members as one program, each in `WORKDIR/NAME`; goes on where they stopped.

    Args:
      ready: what `read_members` returned for them.

    Returns:
      What stopped the members whose loss was no number any more, by name, and the names of those that SIGTERM stopped.
    """
    if jax.process_index() == 0:
        for name, own in configs.items():
            run_config.write(f"{workdir}/{name}", own)
    rows = own_rows(ready.mesh, config.batch_size)
    batches = {
        name: Batches(notes, own.data.length, own.batch_size, len(task.outputs), own.epochs, own.seed, rows)
        for (name, own), (task, notes, _) in zip(configs.items(), ready.data.values(), strict=True)
    }

    def unfinished() -> list[str]:
        return [name for name in configs if not _complete(f"{workdir}/{name}", len(batches[name]))]

    left = unfinished()
    if not left:
        tell(f"{workdir}: every member is complete")
        return {}, []
    failed = _train(config, workdir, {name: configs[name] for name in left}, ready, batches, allow_base_mismatch)
    return failed, [name for name in unfinished() if name not in failed]


def _train(config, workdir, configs, ready: Ready, batches, allow_base_mismatch: bool) -> dict[str, str]:
    """Trains members that have updates left; returns what stopped those that did not get to their last."""
    mesh, tokenizer, data = ready
    layers = read_config(config.base).layers
    specs = {name: adapter_specs(own, layers) for name, own in configs.items()}
    tasks = {name: data[name][0] for name in configs}
    labels = {name: len(task.outputs) for name, task in tasks.items()}
    belongs = belongs_to(config.base, tokenizer)
    template = assemble(template_config(list(configs.values())), max(labels.values()), mesh, False, report=tell)
    base = partition.select(nnx.state(template), ["base"])
    kind = next(iter(tasks.values())).kind
    objective = Objective(kind, tuple(config.active), (), config.loss_chunk)
    predict_step = make_predict_step(nnx.graphdef(template), objective, mesh)
    kept = all(can_keep(own, tasks[name].kind) for name, own in configs.items())
    features = Features(nnx.graphdef(template), objective, mesh) if kept else None
    members, weights = [], []
    for name, own in configs.items():
        task, notes, held_out = data[name]
        folder = f"{workdir}/{name}"
        fresh = not checkpoint.exists(folder)
        model = assemble(own, labels[name], mesh, fresh, {} if allow_base_mismatch else belongs, base)
        validate = None
        if held_out is not None:
            in_order = Batches(held_out, own.data.length, own.batch_size, seed=None, own=batches[name].own)
            validate = validation(_of_own_labels(predict_step, task), in_order, task, mesh, features)
        metadata = {**belongs, **describe(specs[name], task, notes)}
        members.append(Training(folder, own, model, batches[name], validate, metadata, name))
        weights.append(class_weights(own, task, notes))
    table = partition.table(template, config.active, config.trainable)
    tell(f"{len(members)} members over one base, each at most:\n{table}")
    kinds = [task.kind for task in tasks.values()]
    settings = make_settings(
        list(configs.values()), list(specs.values()), template, kinds, weights, list(labels.values())
    )
    keep = features.of if features else None
    return fit_together(members, template, settings, objective, mesh, allow_base_mismatch, keep)


def members_of(config: ConfigDict) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns (name, what it changes) of every member of a config.

    Raises:
      UserError: `config.sweep` is empty or of another form, or a name is no folder's name or there twice.
    """
    members = []
    for part in config.sweep:
        if not (isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[1], Mapping | ConfigDict)):
            raise UserError("config.sweep: not pairs of a name and fields; give (('a name', {'learning_rate': 1e-3}),)")
        name, own = part
        if not (isinstance(name, str) and re.fullmatch(r"\w[\w .=-]*", name)):
            raise UserError(
                f"config.sweep: {name!r} is no name of a folder; give letters, digits, '-', '_', '.' or '='"
            )
        if name in dict(members):
            raise UserError(f"config.sweep: two members are named {name!r}; give each its own name")
        members.append((name, own))
    if not members:
        raise UserError("config.sweep is empty; name the members, as configs/sweep.py does")
    return members


def member_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of each member's own `train` run, by name.

    Raises:
      UserError: what `members_of` raises, or a member changes a field that all members share, or gives one a value of
        another type, or an adapter is no LoRA.
    """
    if why := why_alone(config):
        raise UserError(why)
    configs = {}
    for name, own in members_of(config):
        member = config.copy_and_resolve_references()
        member.sweep = ()
        for field, value in own.items():
            _check_own(config, name, field)
            try:
                member.update_from_flattened_dict({field: value})
            except (TypeError, ValueError):
                raise UserError(f"config.sweep: {name!r} gives {field} the value {value!r}, of another type") from None
        configs[name] = member
    return configs


def _check_own(config: ConfigDict, name: str, field: str) -> None:
    """Checks that a member may have a field for itself."""
    if field.startswith("adapters.") and may_own(field):
        if (adapter := field.split(".")[1]) not in config.adapters:
            raise UserError(f"config.sweep: {name!r} changes {field}, but there is no adapter {adapter!r}")
    elif not may_own(field):
        raise UserError(
            f"config.sweep: {name!r} changes {field}, which all members share; a member may have its own "
            f"{', '.join(OWN)}, and adapters.NAME.{'/'.join(OWN_OF_ADAPTER)}"
        )


def _check_tasks(tasks: Mapping[str, Any]) -> None:
    (first, one), *others = tasks.items()
    for name, other in others:
        same = other.kind == one.kind and len(other.outputs) == len(one.outputs)
        if not same and not (one.kind in OUTCOMES and other.kind in OUTCOMES):
            raise UserError(
                f"config.sweep: data.name of {name!r} is of kind {other.kind!r} with {len(other.outputs)} labels, that "
                f"of {first!r} {one.kind!r} with {len(one.outputs)}; only {', '.join(OUTCOMES)} train together"
            )


def _of_own_labels(step, task):
    """Returns the predict step of the template without the labels that are not the task's own."""
    if task.kind not in OUTCOMES:
        return step
    return lambda state, batch: {"logits": step(state, batch)["logits"][..., : len(task.outputs)]}


def _complete(workdir: str, updates: int) -> bool:
    """Returns whether a run has saved its last update, validated where it had to be."""
    if not checkpoint.exists(workdir):
        return False
    try:
        with checkpoint.Checkpoints(workdir) as checkpoints:
            return checkpoints.latest == updates and checkpoints.metadata(updates)["score"] != checkpoint.UNSCORED
    except Damaged:  # going on from the one before is left to the training
        return False
