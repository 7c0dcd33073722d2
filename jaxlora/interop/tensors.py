"""safetensors files, read slice by slice and written in shards. No pickle is ever loaded."""

import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxlora.errors import UserError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
DTYPES = {name: np.dtype(t) for name, t in (("F32", "f4"), ("F16", "f2"), ("BF16", ml_dtypes.bfloat16))}
_BLOCK = 4_000_000  # bytes read at once of rows that are divided
_SHARD_BYTES = 2_000_000_000  # of host memory too, while it is written


class TensorFiles:
    """The tensors of some safetensors files.

    They are read, not mapped: the pages of a mapped file count as the process's own, a reader of one holds the
    interpreter's lock while the disk is awaited, and the kernel reads far more than is asked for.

    Args:
      paths: the files.
      rename: the name that each tensor of the files goes by here; None leaves it out.

    Attributes:
      where: the file of each tensor, by its name here.
      left_out: the names in the files of those that were left out.

    Raises:
      UserError: a file is missing, truncated or damaged, or a tensor is in two files or of a dtype that is no float of
        16 or 32 bits.
    """

    def __init__(self, paths: Iterable[Path], rename: Callable[[str], str | None] = lambda name: name):
        self._held: dict[str, np.ndarray] = {}
        self.where: dict[str, Path] = {}
        self.left_out: list[str] = []
        self._forms: dict[str, tuple[tuple[int, ...], str]] = {}
        self._starts: dict[str, int] = {}
        self._states: dict[Path, tuple[int, int]] = {}
        for path in paths:
            if not path.exists():
                raise UserError(f"{path} is missing; download it again")
            for stored, form in self._header(path).items():
                name = rename(stored)
                if name is None:
                    self.left_out.append(stored)
                    continue
                if name in self.where:
                    raise UserError(f"{path}: tensor {name!r} is in {self.where[name].name} too; remove one")
                self.where[name], self._forms[name] = path, (tuple(form["shape"]), form["dtype"])
                self._starts[name] = form["data_offsets"][0]
        for name, (_, dtype) in self._forms.items():
            if dtype not in DTYPES:
                raise _not_read(self.where[name], name, dtype)

    def _header(self, path: Path) -> dict[str, dict]:
        """The header of a file, with offsets from the file's beginning."""
        try:
            with safe_open(path, framework="numpy"):  # checks the whole header
                pass
            with open(path, "rb") as file:
                self._states[path] = _state(file)
                length = int.from_bytes(file.read(8), "little")
                forms = json.loads(file.read(length))
        except (SafetensorError, OSError, OverflowError):
            raise UserError(f"{path} is truncated or not a safetensors file; download it again") from None
        forms.pop("__metadata__", None)
        for form in forms.values():
            form["data_offsets"] = [8 + length + offset for offset in form["data_offsets"]]
        return forms

    def add(self, name: str, value: np.ndarray, path: Path) -> None:
        """Adds a tensor that is in memory; `path` is what an error names.

        Raises:
          UserError: a dtype that is no float of 16 or 32 bits.
        """
        form = next((form for form, dtype in DTYPES.items() if dtype == value.dtype), None)
        if form is None:
            raise _not_read(path, name, value.dtype)
        self.where[name], self._forms[name] = path, (value.shape, form)
        self._held[name] = np.ascontiguousarray(value)

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
        return int(np.prod(self.shape(name), dtype=np.int64)) * DTYPES[self.dtype(name)].itemsize

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
        """Reads a tensor, or its part at `index`, in the dtype it is stored in.

        Whole rows are read, to an address that is a multiple of 64: a CPU device takes such an array without a copy.
        """
        shape = self.shape(name)
        count = shape[0] if shape else 1
        start, stop, _ = (index[0] if index else slice(None)).indices(count)
        width = self.bytes(name) // max(count, 1)
        rows = aligned((stop - start, *shape[1:]) if shape else (), self.dtype(name))
        self._fill(name, [(rows.reshape(-1).view(np.uint8), start * width)])
        return rows[(slice(None), *index[1:])] if len(index) > 1 else rows

    def read_parts(self, name: str, indices: Sequence[tuple[slice, ...]]) -> list[np.ndarray]:
        """Reads several parts of a tensor, each an array of its own; what divides a row is read once for all."""
        shape = self.shape(name)
        spans = [[i.indices(n)[:2] for i, n in zip(index, shape, strict=True)] for index in indices]
        if all(span[1:] == [(0, n) for n in shape[1:]] for span in spans):
            return [self.read(name, index) for index in indices]
        block = max(1, _BLOCK // (self.bytes(name) // shape[0]))
        parts = [aligned(tuple(stop - start for start, stop in span), self.dtype(name)) for span in spans]
        for first, last in sorted({span[0] for span in spans}):
            for start in range(first, last, block):
                read = self.read(name, (slice(start, min(start + block, last)),))
                for part, index, span in zip(parts, indices, spans, strict=True):
                    if span[0] == (first, last):
                        part[start - first :][: len(read)] = read[(slice(None), *index[1:])]
        return parts

    def rows(self, name: str, numbers: Sequence[int]) -> bytes:
        """Reads some rows of a tensor, and nothing between them."""
        width = self.bytes(name) // max((self.shape(name) or (1,))[0], 1)
        rows = np.empty((len(numbers), width), np.uint8)
        self._fill(name, [(row, i * width) for row, i in zip(rows, numbers, strict=True)], scattered=True)
        return rows.tobytes()

    def _fill(self, name: str, parts: list[tuple[np.ndarray, int]], scattered: bool = False) -> None:
        """Fills each array with the bytes of the tensor that begin there."""
        if name in self._held:
            whole = self._held[name].reshape(-1).view(np.uint8)
            for part, start in parts:
                part[:] = whole[start : start + len(part)]
            return
        try:
            with open(self.where[name], "rb", buffering=0) as file:
                if _state(file) != self._states[self.where[name]]:
                    raise OSError
                if scattered and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
                for part, start in parts:
                    file.seek(self._starts[name] + start)
                    done = 0
                    while done < len(part):  # one call reads 2 GB at the most
                        count = file.readinto(memoryview(part)[done:])
                        if not count:
                            raise OSError
                        done += count
        except OSError:
            raise UserError(f"{self.where[name]} cannot be read any more; was it changed meanwhile?") from None


def _not_read(path: Path, name: str, dtype: object) -> UserError:
    return UserError(
        f"{path}: tensor {name!r} is stored as {dtype}; convert it to float32, bfloat16 or float16 (quantised weights "
        "are not read)"
    )


def _state(file: IO) -> tuple[int, int]:
    """Size and time of change of an open file."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Returns an array of a stored dtype, not filled, that starts at a multiple of 64 bytes.

    Its memory is the kernel's and goes back there at once; what many threads free, the allocator would keep.
    """
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8, size).view(DTYPES[dtype]).reshape(shape)


def model_files(directory: str | Path, rename: Callable[[str], str | None] = lambda name: name) -> TensorFiles:
    """Returns the tensors of a Hugging Face directory: `model.safetensors`, or its index and the files that it names.

    Args:
      rename: as in `TensorFiles`.

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
        return TensorFiles((directory / name for name in names), rename)
    if (directory / _SINGLE).exists():
        return TensorFiles([directory / _SINGLE], rename)
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
