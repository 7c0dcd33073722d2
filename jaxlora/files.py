"""Files that appear whole or not at all, readable by their owner only."""

import os
import tempfile
from pathlib import Path

from etils import epath


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
