"""safetensors files, read slice by slice and written in shards. No pickle is ever loaded."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxlora.errors import UserError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes a number
_SHARD_BYTES = 5_000_000_000


class TensorFiles:
    """The tensors of some safetensors files.

    A file is opened anew for each read: its pages are mapped no longer than the read takes, so that the process never
    seems to hold the whole file.

    Args:
      paths: the files.

    Raises:
      UserError: a file is missing, truncated or damaged, or a tensor is in two files or of a dtype that is no float of
        16 or 32 bits.
    """

    def __init__(self, paths: Iterable[Path]):
        self.where: dict[str, Path] = {}
        self._forms: dict[str, tuple[tuple[int, ...], str]] = {}
        for path in paths:
            if not path.exists():
                raise UserError(f"{path} is missing; download it again")
            try:
                with safe_open(path, framework="numpy") as file:
                    for name in file.keys():
                        part = file.get_slice(name)
                        if name in self.where:
                            raise UserError(f"{path}: tensor {name!r} is in {self.where[name].name} too; remove one")
                        self.where[name] = path
                        self._forms[name] = (tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError, OverflowError):
                raise UserError(f"{path} is truncated or not a safetensors file; download it again") from None
        for name, (_, dtype) in self._forms.items():
            if dtype not in _DTYPES:
                raise UserError(
                    f"{self.where[name]}: tensor {name!r} is stored as {dtype}; convert it to float32, bfloat16 or "
                    "float16 (quantised weights are not read)"
                )

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._forms[name][0]

    def dtype(self, name: str) -> str:
        """The stored dtype of a tensor: "F32", "F16" or "BF16"."""
        return self._forms[name][1]

    def bytes(self, name: str) -> int:
        """The size of a tensor in its file."""
        return int(np.prod(self.shape(name), dtype=np.int64)) * _DTYPES[self.dtype(name)]

    def check(self, name: str, shape: tuple[int, ...], why: str) -> None:
        """Checks that there is a tensor of this shape.

        Raises:
          UserError: there is none, or it has another shape; `why` says what makes it that, e.g. "config.json".
        """
        if name not in self.where:
            folder = next(iter(self.where.values())).parent if self.where else "the directory"
            raise UserError(f"{folder} has no tensor {name!r}, which {why} asks for; download it again")
        if self.shape(name) != tuple(shape):
            raise UserError(
                f"{self.where[name]}: tensor {name!r} is {list(self.shape(name))}, {why} makes it {list(shape)}; "
                "download both again"
            )

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads a tensor, or its part at `index`, in the dtype it is stored in."""
        try:
            with safe_open(self.where[name], framework="numpy") as file:
                return file.get_slice(name)[index] if index else file.get_tensor(name)
        except (SafetensorError, OSError):
            raise UserError(f"{self.where[name]} cannot be read any more; was it changed meanwhile?") from None


def model_files(directory: str | Path) -> TensorFiles:
    """Returns the tensors of a Hugging Face directory: `model.safetensors`, or its index and the files that it names.

    Raises:
      UserError: there is none, the index is damaged or leaves the directory, or as `TensorFiles`.
    """
    directory = Path(directory)
    index = directory / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            outside = any(Path(name).name != name or name in ("", "..") for name in names)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            names = []
        if not names:
            raise UserError(f"{index} is damaged; download it again")
        if outside:
            raise UserError(f"{index} names a file outside its directory; download it again from where you trust it")
        for name in names:
            if not os.path.exists(directory / name):
                raise UserError(f"{directory / name} is missing although {INDEX} names it; download it again")
        return TensorFiles(directory / name for name in names)
    if (directory / _SINGLE).exists():
        return TensorFiles([directory / _SINGLE])
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise UserError(
            f"{directory} has only pickled weights, which are never loaded; convert them once, where you trust them: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) in transformers"
        )
    raise UserError(f"{directory} has no {_SINGLE}; give the directory of a Hugging Face LLaMA")


def write_sharded(
    directory: Path, forms: Mapping[str, int], make: Callable[[str], np.ndarray], shard_bytes: int = _SHARD_BYTES
) -> None:
    """Writes tensors as `model.safetensors`, or as several files and an index, one file in memory at a time.

    Args:
      forms: the size in bytes of each tensor, in the order to write.
      make: gives the tensor of a name.
    """
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in forms.items():
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    metadata = {"format": "pt"}  # transformers refuses a file without it
    if len(shards) == 1:
        save_file({name: make(name) for name in shards[0]}, directory / _SINGLE, metadata)
        return
    where = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: make(name) for name in names}, directory / file, metadata)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(forms.values())}, "weight_map": dict(sorted(where.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
