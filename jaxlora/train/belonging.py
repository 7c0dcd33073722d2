"""What a checkpoint belongs to: base, tokenizer, adapters and labels, and whether they are those of now."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxlora.data.examples import Task
from jaxlora.data.tokens import TokenizedNotes, Tokenizer
from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.models.techniques import Spec, described, spec_json, spec_of
from jaxlora.partition import partition_of
from jaxlora.train import run_config
from jaxlora.train.checkpoint import Checkpoints, Path


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
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.choose(run_config.read(workdir).select)
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
    check_frozen_base(workdir, stored)
    own = f"adapter/{name}", f"initial/{name}"
    values = {path: value for path, value in stored.items() if partition_of(path) in own}
    before, layers = spec_of(found), len(next(iter(values.values())))
    if before.form(layers) != spec.form(layers):
        raise UserError(f"{where} differs from what {workdir} was trained with; give {described(before)}")
    return values


def check_frozen_base(workdir: str, stored: Mapping[Path, np.ndarray]) -> None:
    """Checks that the adapters of a run are of the base it names, and not of one that it trained.

    Raises:
      UserError: the checkpoint holds a base.
    """
    if any(partition_of(path) == "base" for path in stored):
        raise UserError(f"{workdir} trained its base, which no adapter holds; its adapters are of no use without it")
