"""Files that appear whole or not at all, readable by their owner only."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from jaxlora.errors import UserError


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file beside its place and renames it there, mode 0600; a failure leaves the previous file intact.

    An object of a bucket (`gs://`) is written in one piece, which the store makes visible when it is whole.
    """
    data = content.encode() if isinstance(content, str) else content
    if os.fspath(path).startswith("gs://"):
        epath.Path(path).write_bytes(data)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON data as `write` does; what is not a number, such as the AUROC of a single class, becomes null."""
    write(path, json.dumps(_without_nan(value), indent=1) + "\n")


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Makes files and folders that are created inside the block readable by their owner only."""
    previous = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(previous)


@contextlib.contextmanager
def locked(path: Path, occupied: str) -> Iterator[None]:
    """Holds a lock file for the time of the block, which the end of the process lets go of, however it ends.

    Raises:
      UserError: another process holds it; `occupied` says what to do.
    """
    import fcntl  # not on Windows, where nothing else here is either

    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path.parent}: {occupied}") from None
        yield


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which becomes `path` when the block ends well and vanishes when it fails.

    Raises:
      UserError: `path` exists and is not empty.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output: {path} exists; give a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        os.replace(folder, target)
    except BaseException:
        shutil.rmtree(folder)
        raise


def read_json_object(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      UserError: it holds something else; `remedy` says what to do.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}")
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
