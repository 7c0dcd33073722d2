"""Files that appear whole or not at all, readable by their owner only."""

import os
import tempfile
from pathlib import Path


def write(path: str | Path, content: str) -> None:
    """Writes a file beside its place and renames it there, mode 0600; a failure leaves the previous file intact."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
