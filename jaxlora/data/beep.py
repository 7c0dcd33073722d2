"""The labels of prolonged mechanical ventilation that BEEP published (Naik et al., NAACL 2022), as a pickle.

A pickle can run code, so this one is read by an unpickler that makes containers, numbers and texts and nothing else.
"""

import io
import pickle
import re
import struct
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlora.data import mimic
from jaxlora.errors import UserError

_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "validation": "validation", "test": "test"}
_IDENTIFIER = re.compile(r"[0-9]{1,18}")
_LARGEST = 64 * 2**20  # bytes; the published file has 7,079 entries


@dataclass(frozen=True)
class Labelled:
    """One entry of the file: an admission, whether it was ventilated for more than 7 days, and the published split."""

    admission: str
    label: int
    split: str


def read(path: str | Path) -> list[Labelled]:
    """Returns the entries of `pmv_labels.pkl`, `{HADM_ID: (label, ..., split)}`, in their order.

    Raises:
      UserError: the file is missing, is no such pickle, or an entry has another label or split or comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; set beep to BEEP's pmv_labels.pkl")
    result: dict[str, Labelled] = {}
    for number, item in enumerate(dict.items(_load(path)), start=1):
        entry = _entry(path, number, *item)
        if entry.admission in result:  # the keys 1 and "1"
            raise UserError(f"{path}, entry {number}: an earlier entry has its HADM_ID; download the file again")
        result[entry.admission] = entry
    return list(result.values())


def _load(path: Path) -> dict[Any, Any]:
    wrong = UserError(f"{path}: not a label file; set beep to BEEP's pmv_labels.pkl")
    if path.stat().st_size > _LARGEST:
        raise wrong
    try:
        labels = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception:  # a file that is no pickle, or a damaged one, can fail in any way
        raise wrong from None
    if not isinstance(labels, dict) or not labels:
        raise wrong
    return labels


def _entry(path: Path, number: int, admission: Any, value: Any) -> Labelled:
    where = f"{path}, entry {number}"
    if not isinstance(value, tuple | list) or len(value) < 2:
        raise UserError(f"{where}: not a label and a split; download the file again")
    label, split = value[0], value[-1]
    if not isinstance(label, int | float | str) or label not in (0, 1, "0", "1"):
        raise UserError(f"{where}: the label is neither 0 nor 1; download the file again")
    if not isinstance(split, str) or split not in _SPLITS:
        raise UserError(f"{where}: the split is none of train, val and test; download the file again")
    # Python refuses to write numbers of thousands of digits.
    known = isinstance(admission, float | str) or isinstance(admission, int) and abs(admission) < 10**18
    id = mimic.identifier(str(admission)) if known else ""
    if not _IDENTIFIER.fullmatch(id):
        raise UserError(f"{where}: the key is not a HADM_ID; download the file again")
    return Labelled(id, int(label), _SPLITS[split])


class _Dtype:
    """The type of a NumPy scalar, for `_scalar`: NumPy itself is not called by a pickle."""

    def __init__(self, code: str, *_: Any):
        self.format = {"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "f8": "d", "f4": "f", "b1": "?"}[code]
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    return struct.unpack(dtype.order + dtype.format, data)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Returns the bytes that protocols 0 to 2 write as a text."""
    return text.encode("latin-1")


_ALLOWED = {
    **{("builtins", kind.__name__): kind for kind in (dict, list, tuple, set, frozenset)},
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


# The unpickler in Python keeps its memo in a dictionary; the one in C would allocate whatever index a file names.
class _Unpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def _build(self) -> None:
        """Gives an object its state: only the type of a NumPy scalar has one. A function could be given others."""
        if type(self.stack[-2]) is not _Dtype:
            raise pickle.UnpicklingError("a state that no label file needs")
        self.load_build()

    dispatch[pickle.BUILD[0]] = _build

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError("a name that no label file needs")
        return _ALLOWED[module, name]
