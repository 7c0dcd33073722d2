"""Orbax checkpoints of a run: adapters, head, optimizer and data iterator.

A checkpoint holds every parameter that is not the base (and the base too, in a run that trains it), so a run's folder
and the base directory are all that evaluation needs. Its metadata say what it belongs to (`belonging.py`).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxlora import files
from jaxlora.errors import UserError
from jaxlora.terminal import warn
from jaxlora.train.damage import Damaged, move_aside, without_score, writing

Path = tuple[str, ...]
METADATA = ("base", "tokenizer", "adapters", "kind", "labels", "training set")
UNSCORED = -math.inf  # the score of a checkpoint that was saved without a validation


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
                warn(f"checkpoint {step} has no score: it is damaged; delete {move_aside(self.directory, step)}")
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

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

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
