"""Full disks and damaged files: what a run's checkpoints can meet, in one line for the user."""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator

import jax
from etils import epath
from jax.experimental import multihost_utils

from jaxlora.errors import UserError


class Damaged(UserError):
    """A checkpoint that cannot be read.

    Args:
      directory: the checkpoints'. step: which one. why: what is wrong with it, after "checkpoint 3".
    """

    def __init__(self, directory: epath.Path, step: int, why: str):
        super().__init__(f"{directory}: checkpoint {step} {why}; delete that folder")
        self.why = why


@contextlib.contextmanager
def writing(directory: epath.Path, latest: Callable[[], int | None]) -> Iterator[None]:
    """Turns what the system says of a save that failed into a line for the user.

    Args:
      latest: gives the step of the last checkpoint that is whole, or None.

    Raises:
      UserError: the save failed for want of room, or the like.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        # TensorStore hands on the system's errors as "RESOURCE_EXHAUSTED: ...: No space left [os_error_code='28']".
        told = re.search(r"([^:]+) \[os_error_code=", str(error))
        reason = told[1].strip() if told else getattr(error, "strerror", None)
        if not reason:
            raise
        kept = f"checkpoint {latest()} is kept" if latest() else "no checkpoint was made before"
        raise UserError(
            f"{directory}: cannot save ({reason}); {kept}: make room there, and the same command goes on"
        ) from None


def without_score(directory: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints whose score cannot be read."""
    damaged = []
    for path in directory.glob("*/metrics/metrics"):
        step = path.parent.parent.name
        try:
            json.loads(path.read_text())["score"]
        except (ValueError, KeyError):
            damaged += [int(step)] if step.isdigit() else []
    return sorted(damaged)


def move_aside(directory: epath.Path, step: int) -> epath.Path:
    """Renames the folder of a damaged checkpoint to `STEP.damaged`, once for all hosts, when every one has seen that it
    is damaged; returns the new name."""
    names = (f"{step}.damaged{number}" for number in itertools.chain([""], itertools.count(2)))
    target = next(directory / name for name in names if not (directory / name).exists())
    multihost_utils.sync_global_devices(f"checkpoint {step} is damaged")
    if jax.process_index() == 0:
        (directory / str(step)).rename(target)
    multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
    return target
