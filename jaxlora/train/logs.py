"""The log of a run: JSON lines and TensorBoard, and Weights & Biases where it is asked for; numbers only."""

import json
import uuid
from collections.abc import Mapping
from types import ModuleType

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxlora import files
from jaxlora.errors import UserError


class RunLog:
    """Writes `WORKDIR/log.jsonl` and TensorBoard events; on hosts other than the first it writes nothing.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; what an interrupted run logged after it is dropped.
      config: of the run, where it may name a project of Weights & Biases.
    """

    def __init__(self, workdir: str, step: int, config: ConfigDict | None = None):
        self._writes = jax.process_index() == 0
        self._path = epath.Path(workdir) / "log.jsonl"
        self._lines = []
        self._sent = None
        if not self._writes:
            return
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if line.endswith("}")]
            self._lines = [line for line in lines if json.loads(line)["step"] <= step]
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1)
        if config is not None and config.wandb:
            self._sent = start_wandb(config, workdir)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one line; it reaches the disk at the next `flush`."""
        if self._writes:
            self._lines.append(json.dumps({"step": step, **values}))
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            if self._sent:
                self._sent.log(values, step=step)

    def flush(self) -> None:
        """Brings the log to the disk, whole: an object store cannot append."""
        if self._writes:
            files.write(self._path, "".join(line + "\n" for line in self._lines))
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._writes:
            self._board.close()
            if self._sent:
                self._sent.finish()


def wandb_module() -> ModuleType:
    """Returns Weights & Biases' package.

    Raises:
      UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            "config.wandb is set and wandb is not installed: pip install wandb, or leave it empty"
        ) from None
    return wandb


def start_wandb(config: ConfigDict, workdir: str):
    """Opens the run in the project `config.wandb`; a run that is resumed goes on there too.

    What is sent: the numbers of the log, and those fields of the config that are numbers or yes and no. No text of the
    config, which has paths; not the output, the code, the command line, the name or the state of the machine, nor the
    list of its packages. What wandb keeps of it lies under `WORKDIR/wandb`.

    Raises:
      UserError: wandb refuses, for want of a key for instance.
    """
    wandb, path = wandb_module(), epath.Path(workdir) / "wandb-id"
    if not path.exists():
        files.write(path, uuid.uuid4().hex)
    try:
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            host="",
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=config.wandb,
            id=path.read_text(),
            resume="allow",
            dir=None if workdir.startswith("gs://") else workdir,
            config=numbers(config),
            settings=settings,
        )
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"config.wandb: {reason}; log in with `wandb login`, or leave it empty") from None


def numbers(config: Mapping, prefix: str = "") -> dict[str, float]:
    """Returns the fields of a config that are numbers, by their whole names."""
    found = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            found[prefix + name] = value
    return found
