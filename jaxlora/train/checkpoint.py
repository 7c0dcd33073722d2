"""Orbax checkpoints of a run: adapters, head, optimizer, data iterator, and what they belong to.

A checkpoint holds every parameter that is not the base (and the base too, in a run that trains it), so a run's folder
and the base directory are all that evaluation needs. Its metadata say which base, which tokenizer and which adapters
it is of; a mismatch is an error that names the difference.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jaxlora import files
from jaxlora.config import default, drops_out, flat, wrong_field
from jaxlora.data.examples import Task
from jaxlora.data.tokens import TokenizedNotes, Tokenizer
from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.models.techniques import Spec, spec_json, spec_of
from jaxlora.partition import partition_of
from jaxlora.train.damage import Damaged, move_aside, say, without_score, writing

Path = tuple[str, ...]
METADATA = ("base", "tokenizer", "adapters", "kind", "labels", "training set")
UNSCORED = -math.inf  # the score of a checkpoint that was saved without a validation
# Fields that older runs lack; their defaults are what was done before there were any.
_ADDED = (
    *("quantize", "accumulate", "attention.", "mesh.rules.", "keep.", "wandb", "sweep"),
    *("search.", "paper_accumulate"),
)
# What may differ in a run that goes on: where the arrays lie and what is kept of them, but not what is computed; and
# how many trials a search makes.
MAY_CHANGE = ("mesh.", "accumulate", "remat", "attention.", "loss_chunk", "keep.", "wandb", "search.budget")


class Checkpoints:
    """The checkpoints of one run, under `WORKDIR/checkpoints`.

    Args:
      workdir: the run's folder, local or `gs://`.
      keep: how many of the `last`, and of the `best` on validation, stay, for the process that trains the run; it also
        clears away what an interrupted save left. None deletes nothing, so that a run can be read while it is trained.

    Raises:
      Damaged: the score of a checkpoint cannot be read (with `keep`, of every checkpoint: it sets aside a few).
    """

    def __init__(self, workdir: str, keep: Mapping[str, int] | None = None):
        self.directory = epath.Path(workdir).absolute() / "checkpoints"
        try:
            self._orbax = self._open(keep)
        except ValueError:  # Orbax reads the scores of all checkpoints
            damaged = without_score(self.directory)
            if not damaged:
                raise
            if keep is None or not set(_steps(self.directory)) - set(damaged):
                raise Damaged(self.directory, damaged[-1], "has no score: it is damaged") from None
            for step in damaged:
                say(f"checkpoint {step} has no score: it is damaged; delete {move_aside(self.directory, step)}")
            self._orbax = self._open(keep)

    def _open(self, keep: Mapping[str, int] | None) -> ocp.training.Checkpointer:
        policies, policy = ocp.training.preservation_policies, None
        if keep is not None:
            best = policies.BestN(get_metric_fn=_score, n=keep["best"], keep_checkpoints_without_metrics=False)
            policy = policies.AnyPreservationPolicy([policies.LatestN(keep["last"]), best])
        return ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=keep is not None
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in their order."""
        return [found.step for found in self._orbax.checkpoints]

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(
        self,
        step: int,
        model: nnx.State,
        optimizer: Any,
        data: dict[str, int],
        score: float,
        metadata: dict[str, Any],
    ) -> None:
        """Begins to save one step, which is there, whole, when the next `save`, `wait` or `close` returns.

        The arrays are copied before it returns, so that training may go on and donate them.

        Args:
          model: the parameters to keep. optimizer: the optimizer's state. data: the state of the data iterator.
          score: what the best checkpoint has most of, on validation.
          metadata: what the checkpoint belongs to, JSON.

        Raises:
          UserError: this save, or the one before, cannot be written; what was saved earlier stays.
        """
        items = {"model": _by_name(model), "optimizer": _by_name(optimizer), "data": data}
        given = {name: item for name, item in items.items() if item}  # an imported adapter has its parameters alone
        with writing(self.directory, lambda: self.latest):
            self._orbax.save_checkpointables_async(
                step, given, force=True, metrics={"score": float(score)}, custom_metadata=metadata
            )

    def wait(self) -> None:
        """Returns when the last save is on the disk.

        Raises:
          UserError: it cannot be written; what was saved earlier stays.
        """
        with writing(self.directory, lambda: self.latest):
            self._orbax.wait()

    def set_aside(self, step: int) -> epath.Path:
        """Takes a damaged checkpoint out of the run; returns what its folder is now, for the user to delete."""
        target = move_aside(self.directory, step)
        self._orbax.reload()
        return target

    def restore(self, step: int, model: nnx.State, optimizer: Any) -> tuple[nnx.State, Any, dict[str, int]]:
        """Returns (model, optimizer, data) of a step, in the forms and on the devices of the ones given.

        Raises:
          UserError: the checkpoint is damaged.
        """
        like = {"model": _abstract(_by_name(model)), "optimizer": _abstract(_by_name(optimizer)), "data": None}
        items = self._load(step, like)
        data = {name: int(value) for name, value in items["data"].items()}
        return _like(model, items["model"]), _like(optimizer, items["optimizer"]), data

    def restore_model(self, step: int, model: nnx.State) -> nnx.State:
        """Returns the parameters of a step alone, without the head where `model` has none.

        Raises:
          UserError: the checkpoint is damaged, or holds other parameters.
        """
        forms, wanted = self._forms(step), _abstract(_by_name(model))
        for name, leaf in wanted.items():
            found = forms[name].shape if name in forms else None
            if found != leaf.shape:
                has = "no such parameter" if found is None else f"{list(found)}"
                raise UserError(
                    f"{self.directory}: base and config make {name} {list(leaf.shape)}, checkpoint {step} has {has}; "
                    "give the base that it was trained with"
                )
        unread = {name: form for name, form in forms.items() if name.startswith("head/")}
        return _like(model, self._load(step, {"model": unread | wanted})["model"])

    def load_numpy(self, step: int) -> dict[Path, np.ndarray]:
        """Returns the parameters of a step by path, on the host, whatever devices they were trained on.

        Raises:
          UserError: the checkpoint is damaged.
        """
        values = self._load(step, {"model": self._forms(step)})["model"]
        return {tuple(name.split("/")): value for name, value in values.items()}

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a step's parameters by name, `blocks/q_proj/adapters/clinical/a`."""
        return {name: form.shape for name, form in self._forms(step).items()}

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns what a step's checkpoint belongs to, with its score."""
        try:
            found = self._orbax.checkpointables_metadata(step)
            return {**{name: found.custom_metadata[name] for name in METADATA}, "score": found.metrics["score"]}
        except (TypeError, KeyError, ValueError, OSError):
            raise Damaged(self.directory, step, "is damaged") from None

    def choose(self, select: str) -> int:
        """Returns the step to evaluate: the `best` on validation, or the `last`.

        Raises:
          UserError: there is no checkpoint, or `select` is neither.
        """
        if select not in ("best", "last"):
            raise UserError(f"config.select is {select!r}; give 'best' or 'last'")
        if not self._orbax.checkpoints:
            raise UserError(f"{self.directory.parent} has no checkpoint; train it first")
        if select == "last":
            return self.latest
        for found in self._orbax.checkpoints:
            if not found.metrics:
                raise Damaged(self.directory, found.step, "has no score: it is damaged")
        return max(self._orbax.checkpoints, key=lambda c: (c.metrics["score"], c.step)).step

    def rescore(self, step: int, score: float) -> None:
        """Gives a step that was saved without a score the one it has; nothing else of it is written again.

        Raises:
          UserError: it cannot be written; the step stays without one.
        """
        with writing(self.directory, lambda: self.latest):
            if jax.process_index() == 0:  # where Orbax keeps it
                files.write_json(self.directory / str(step) / "metrics" / "metrics", {"score": float(score)})
        multihost_utils.sync_global_devices(f"checkpoint {step} has its score")
        self._orbax.reload()

    def close(self) -> None:
        """Waits for the last save; raises what `wait` raises."""
        with writing(self.directory, lambda: self.latest):
            self._orbax.close()

    def _forms(self, step: int) -> dict[str, np.ndarray]:
        """Empty arrays in the shapes of a step's parameters, by name."""
        try:
            stored = self._orbax.checkpointables_metadata(step).metadata["model"]
            return {name: np.empty(array.shape, array.dtype) for name, array in stored.items()}
        except (AttributeError, TypeError, KeyError, ValueError, OSError):
            raise Damaged(self.directory, step, "is damaged") from None

    def _load(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._orbax.load_checkpointables(step, like)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            why = f"cannot be restored ({type(error).__name__}): it is damaged or of another model"
            raise Damaged(self.directory, step, why) from None


def exists(workdir: str) -> bool:
    """Returns whether a run has a checkpoint to go on from."""
    directory = epath.Path(workdir).absolute() / "checkpoints"
    return directory.exists() and bool(_steps(directory))


def _steps(directory: epath.Path) -> list[int]:
    """The steps that have a checkpoint, without a look at their scores, which may be damaged."""
    return [found.step for found in ocp.path.step.standard_name_format().find_all(directory)]


def load_adapter(workdir: str, name: str, spec: Spec, belongs: Mapping[str, str]) -> dict[Path, np.ndarray]:
    """Returns the parameters of adapter `name` of an earlier run, by path.

    Args:
      workdir: the earlier run. spec: the adapter's size in this run.
      belongs: the fingerprints of this run's base and tokenizer, by name, or of those that must be the same.

    Raises:
      UserError: no such run or adapter, another size, or trained on another base or tokenizer.
    """
    where = f"config.adapters.{name}"
    if not (epath.Path(workdir) / "checkpoints").exists():
        raise UserError(f"{where}.workdir: {workdir} has no checkpoints; train that run first")
    checkpoints = Checkpoints(workdir)
    try:
        step = checkpoints.choose(read_config(workdir).select)
        metadata = checkpoints.metadata(step)
        found = metadata["adapters"].get(name)
        if found is None:
            present = ", ".join(sorted(metadata["adapters"])) or "none"
            raise UserError(f"{where}.workdir: {workdir} has no adapter {name!r}, but {present}")
        for what, value in belongs.items():
            if metadata[what] != value:
                raise UserError(
                    f"{where}.workdir: {workdir} was trained on another {what} than config.base has; give that one, or "
                    "--allow-base-mismatch"
                )
        stored = checkpoints.load_numpy(step)
    finally:
        checkpoints.close()
    check_frozen_base(workdir, stored)
    own = f"adapter/{name}", f"initial/{name}"
    values = {path: value for path, value in stored.items() if partition_of(path) in own}
    before, layers = spec_of(found), len(next(iter(values.values())))
    if before.form(layers) != spec.form(layers):
        raise UserError(f"{where} differs from what {workdir} was trained with; give {before.described()}")
    return values


def belongs_to(base: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the fingerprints of a base and its tokenizer, by the names that the metadata have for them."""
    return {"base": huggingface.fingerprint(base), "tokenizer": tokenizer.fingerprint}


def describe(specs: Mapping[str, Spec], task: Task, notes: TokenizedNotes) -> dict[str, Any]:
    """Returns what a run's checkpoints say of it, beside its base and tokenizer."""
    return {
        "adapters": {name: spec_json(spec) for name, spec in specs.items()},
        "kind": task.kind,
        "labels": list(task.outputs),
        "training set": notes.fingerprint,
    }


def check_frozen_base(workdir: str, stored: Mapping[Path, np.ndarray]) -> None:
    """Checks that the adapters of a run are of the base it names, and not of one that it trained.

    Raises:
      UserError: the checkpoint holds a base.
    """
    if any(partition_of(path) == "base" for path in stored):
        raise UserError(f"{workdir} trained its base, which no adapter holds; its adapters are of no use without it")


def write_config(workdir: str, config: ConfigDict) -> None:
    """Writes the run's config to `WORKDIR/config.json`."""
    files.write_json(epath.Path(workdir) / "config.json", json.loads(config.to_json_best_effort()))


def read_config(workdir: str) -> ConfigDict:
    """Reads the run's config.

    Raises:
      UserError: the folder is not a run's, or its config is damaged.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"--workdir: {workdir} has no config.json; give the folder of a run that `train` made")
    try:
        raw = json.loads(path.read_text())
        for field, value in flat(default()).items():
            if field.startswith(_ADDED):
                _set_missing(raw, field.split("."), value)
        config = ConfigDict(raw)
        wrong = wrong_field(config)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; copy it again") from None
    if wrong:
        raise UserError(f"{path}: {wrong}; the file is damaged, or of another version")
    return config


def _set_missing(raw: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        raw = raw.setdefault(name, {})
    raw.setdefault(path[-1], value)


def check_same_run(workdir: str, config: ConfigDict) -> None:
    """Checks that a run that is to be resumed has the config it was started with, but for `MAY_CHANGE`.

    Raises:
      UserError: a field differs; it is named with both values.
    """
    before, now = flat(read_config(workdir)), flat(json.loads(config.to_json_best_effort()))
    differing = [field for field in sorted(before.keys() | now.keys()) if before.get(field) != now.get(field)]
    may = MAY_CHANGE
    if "accumulate" in differing and drops_out(config, huggingface.read_shape(config.base).drops_out):
        may = tuple(field for field in may if field != "accumulate")  # each part draws masks of its own
    for field in differing:
        if not field.startswith(may):
            raise UserError(
                f"--workdir: {workdir} was started with config.{field} = {before.get(field)!r}, "
                f"not {now.get(field)!r}; use a new workdir"
            )


def check_belongs(workdir: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that a checkpoint was made with the base, tokenizer and labels of now.

    Args:
      before: the checkpoint's metadata. now: the same of now, or a part of them.

    Raises:
      UserError: one differs; it is named.
    """
    for what, value in now.items():
        if before[what] != value:
            override = ", or --allow-base-mismatch" if what in ("base", "tokenizer") else ""
            raise UserError(
                f"--workdir: {workdir} was trained with another {what}; give back that one, or train anew{override}"
            )


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _by_name(tree: Any) -> dict[str, jax.Array]:
    """Returns the leaves of a tree by name, `blocks/q_proj/adapters/clinical/a`: free of any class of Flax or optax."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _like(tree: Any, values: dict[str, jax.Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: values[_name(path)], tree)


def _name(path: Path) -> str:
    keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    return "/".join(key for key in keys if key != "value")


def _abstract(values: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding) for name, v in values.items()}
