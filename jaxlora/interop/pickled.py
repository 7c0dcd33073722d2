"""`pytorch_model.bin` without PyTorch, and without running anything that a pickle could run.

Such a file is a pickle that says which stretch of which storage every tensor is, and the storages: members of a zip
archive, or, as PyTorch wrote them until version 1.6, one after the other behind the pickle. The few names that the
pickle of a state dict needs are given our own meaning, and every other one is refused.
"""

import collections
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxlora.errors import UserError

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}
_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
    """A storage, or in old files the part of one that begins `start` elements after its beginning."""

    dtype: np.dtype
    key: str
    start: int


class _Tensor(NamedTuple):
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """A pickle that names what no state dict has."""


# The unpickler in Python keeps its memo in a dictionary; the one in C would allocate whatever index a file names.
class _StateDict(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # fills as much memory as a file says, before it looks for the bytes

    def _build(self) -> None:
        """Drops what a state dict notes beside its tensors, the versions of its modules."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = _build

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, start, shape, strides, *_: _Tensor(
                storage, start, tuple(shape), tuple(strides)
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise _Refused(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, saved: tuple) -> _Storage:
        _, dtype, key, _, _, *view = saved
        return _Storage(dtype, str(key), view[0][1] if view and view[0] else 0)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the floating tensors of a PyTorch file by name, views of the mapped file; those of 64 bits in float32.

    Raises:
      UserError: a damaged file, or one that holds more than tensors.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            tensors, place = _of_archive(file) if zipfile.is_zipfile(file) else _of_sequence(file)
            found = {name: _view(mapped, place, x) for name, x in tensors.items() if isinstance(x, _Tensor)}
    except _Refused as named:
        raise UserError(
            f"{path} names {named}, which no tensor is made of, and nothing else is loaded; save the model's "
            "state_dict there, alone"
        ) from None
    except Exception as error:  # a damaged pickle raises whatever the last of its instructions raises
        raise UserError(
            f"{path} is not a readable file of weights ({type(error).__name__}); download it again"
        ) from None
    floating = {name: x for name, x in found.items() if x.dtype.kind == "f" or x.dtype == ml_dtypes.bfloat16}
    return {name: x.astype(np.float32) if x.dtype.itemsize == 8 else x for name, x in floating.items()}


def _of_archive(file: IO[bytes]) -> tuple[dict[str, _Tensor], Callable[[_Storage], int]]:
    """The tensors, and where a storage begins in the file."""
    archive = zipfile.ZipFile(file)
    pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    with archive.open(pickled) as content:
        tensors = _StateDict(content).load()

    def place(storage: _Storage) -> int:
        member = archive.getinfo(f"{pickled.removesuffix('.pkl')}/{storage.key}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("compressed")
        file.seek(member.header_offset + 26)
        return member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))  # behind its name and extra field

    return tensors, place


def _of_sequence(file: IO[bytes]) -> tuple[dict[str, _Tensor], Callable[[_Storage], int]]:
    """The same of an old file: pickles of a magic number, a version, the machine, the tensors and the storages' order,
    then of each storage the number of elements and the elements."""
    file.seek(0)
    magic, _, _, tensors, order = (_StateDict(file).load() for _ in range(5))
    if magic != _MAGIC:
        raise ValueError("no PyTorch file")
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values() if isinstance(tensor, _Tensor)}
    starts, position = {}, file.tell()
    for key in order:
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        starts[key] = position + 8
        position = starts[key] + count * dtypes[key].itemsize
    return tensors, lambda storage: starts[storage.key]


def _view(mapped: mmap.mmap, place: Callable[[_Storage], int], tensor: _Tensor) -> np.ndarray:
    """A tensor's elements, where they are in the file."""
    dtype, start = tensor.storage.dtype, tensor.storage.start + tensor.start
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    if start < 0 or min((*tensor.strides, 0)) < 0:
        raise ValueError("out of its storage")
    if math.prod(tensor.shape) * dtype.itemsize > len(mapped):  # a stride of 0 makes any number of one element
        raise ValueError("larger than its file")
    reach = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    elements = np.frombuffer(mapped, dtype, reach, place(tensor.storage) + start * dtype.itemsize)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)
