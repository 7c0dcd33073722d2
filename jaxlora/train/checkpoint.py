"""Orbax checkpoints of a run: adapters, head, optimizer, data iterator, and what they belong to.

A checkpoint holds every parameter that is not the base (and the base too, in a run that trains it), so a run's folder
and the base directory are all that evaluation needs. Its metadata say which base, which tokenizer and which adapters
it is of; a mismatch is an error that names the difference.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jaxlora import files
from jaxlora.config import default
from jaxlora.data.tokens import Tokenizer
from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.partition import partition_of

Path = tuple[str, ...]
METADATA = ("base", "tokenizer", "adapters", "kind", "labels", "training set")


class Checkpoints:
    """The checkpoints of one run, under `WORKDIR/checkpoints`: the latest two and the best on validation.

    Args:
      workdir: the run's folder, local or `gs://`.
    """

    def __init__(self, workdir: str):
        self.directory = epath.Path(workdir).absolute() / "checkpoints"
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(2), policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)]
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory, preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
            )
        except ValueError:  # Orbax reads the scores of all checkpoints
            damaged = ", ".join(_without_score(self.directory))
            raise UserError(f"{self.directory}: checkpoint {damaged} is damaged; delete that folder") from None

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint, or None."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(
        self, step: int, model: nnx.State, optimizer: Any, data: dict[str, int], score: float, metadata: dict[str, Any]
    ) -> None:
        """Saves one step, atomically.

        Args:
          model: the parameters to keep. optimizer: the optimizer's state. data: the state of the data iterator.
          score: what the best checkpoint has most of, on validation.
          metadata: what the checkpoint belongs to, JSON.
        """
        items = {"model": _by_name(model), "optimizer": _by_name(optimizer), "data": data}
        given = {name: item for name, item in items.items() if item}  # an imported adapter has its parameters alone
        self._orbax.save_checkpointables(
            step, given, force=True, metrics={"score": float(score)}, custom_metadata=metadata
        )

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

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns what a step's checkpoint belongs to, with its score."""
        try:
            found = self._orbax.checkpointables_metadata(step)
            return {**{name: found.custom_metadata[name] for name in METADATA}, "score": found.metrics["score"]}
        except (TypeError, KeyError, ValueError, OSError):
            raise UserError(f"{self.directory}: checkpoint {step} is damaged; delete that folder") from None

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
                raise UserError(f"{self.directory}: checkpoint {found.step} is damaged; delete that folder")
        return max(self._orbax.checkpoints, key=lambda c: (c.metrics["score"], c.step)).step

    def close(self) -> None:
        self._orbax.close()

    def _forms(self, step: int) -> dict[str, np.ndarray]:
        """Empty arrays in the shapes of a step's parameters, by name."""
        try:
            stored = self._orbax.checkpointables_metadata(step).metadata["model"]
            return {name: np.empty(array.shape, array.dtype) for name, array in stored.items()}
        except (AttributeError, TypeError, KeyError, ValueError, OSError):
            raise UserError(f"{self.directory}: checkpoint {step} is damaged; delete that folder") from None

    def _load(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._orbax.load_checkpointables(step, like)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise UserError(
                f"{self.directory}: checkpoint {step} cannot be restored ({type(error).__name__}); it is damaged or of "
                "another model: delete that folder to go on from the one before"
            ) from None


def exists(workdir: str) -> bool:
    """Returns whether a run has a checkpoint to go on from."""
    if not (epath.Path(workdir) / "checkpoints").exists():
        return False
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.latest is not None
    finally:
        checkpoints.close()


def load_adapter(workdir: str, name: str, spec: LoraSpec, belongs: Mapping[str, str]) -> dict[Path, np.ndarray]:
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
    values = {path: value for path, value in stored.items() if "adapters" in path and path[3] == name}
    before, layers = spec_of(found), len(next(iter(values.values())))
    if _form(before, layers) != _form(spec, layers):
        raise UserError(f"{where} differs from what {workdir} was trained with; give {before.described()}")
    return values


def belongs_to(base: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the fingerprints of a base and its tokenizer, by the names that the metadata have for them."""
    return {"base": huggingface.fingerprint(base), "tokenizer": tokenizer.fingerprint}


def check_frozen_base(workdir: str, stored: Mapping[Path, np.ndarray]) -> None:
    """Checks that the adapters of a run are of the base it names, and not of one that it trained.

    Raises:
      UserError: the checkpoint holds a base.
    """
    if any(partition_of(path) == "base" for path in stored):
        raise UserError(f"{workdir} trained its base, which no adapter holds; its adapters are of no use without it")


def _form(spec: LoraSpec, layers: int) -> tuple:
    """What two descriptions of one adapter share, however they name its layers."""
    return spec.sizes(layers), spec.dora, spec.init != "lora"


def spec_json(spec: LoraSpec) -> dict[str, Any]:
    """Returns an adapter's size as JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


def spec_of(fields: Mapping[str, Any]) -> LoraSpec:
    """Returns an adapter's size from its fields, with lists or tuples; a field left out has its default."""

    def frozen(value):
        return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value

    return LoraSpec(**{name: frozen(value) for name, value in fields.items()})


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
        config = ConfigDict(json.loads(path.read_text()))
        found = _flat(config)
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged; copy it again") from None
    for field, value in _flat(default()).items():
        kind = {tuple: list, float: int | float}.get(type(value), type(value))
        if not isinstance(found.get(field), kind):
            raise UserError(
                f"{path}: {field} is missing or no {type(value).__name__}; the file is damaged, or of another version"
            )
    return config


def check_same_run(workdir: str, config: ConfigDict) -> None:
    """Checks that a run that is to be resumed has the config it was started with.

    Raises:
      UserError: a field differs; it is named with both values.
    """
    before, now = _flat(read_config(workdir)), _flat(ConfigDict(json.loads(config.to_json_best_effort())))
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field):
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


def _flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
    result = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            result.update(_flat(value, f"{prefix}{name}."))
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def _without_score(directory: epath.Path) -> list[str]:
    """Returns the names of the checkpoints whose score cannot be read."""
    damaged = []
    for path in sorted(directory.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_text())["score"]
        except (ValueError, KeyError):
            damaged.append(path.parent.parent.name)
    return damaged


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
