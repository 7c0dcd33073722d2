"""The log of a run: JSON lines and TensorBoard, numbers only."""

import json

import jax
from etils import epath

from jaxlora import files


class RunLog:
    """Writes `WORKDIR/log.jsonl` and TensorBoard events; on hosts other than the first it writes nothing.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; what an interrupted run logged after it is dropped.
    """

    def __init__(self, workdir: str, step: int):
        self._writes = jax.process_index() == 0
        self._path = epath.Path(workdir) / "log.jsonl"
        self._lines = []
        if not self._writes:
            return
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if line.endswith("}")]
            self._lines = [line for line in lines if json.loads(line)["step"] <= step]
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one line; it reaches the disk at the next `flush`."""
        if self._writes:
            self._lines.append(json.dumps({"step": step, **values}))
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings the log to the disk, whole: an object store cannot append."""
        if self._writes:
            files.write(self._path, "".join(line + "\n" for line in self._lines))
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._writes:
            self._board.close()
