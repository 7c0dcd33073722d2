"""Files of PyTorch without PyTorch: both of its formats, written by hand, and what is never run."""

import collections
import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxlora.interop.pickled import read_tensors

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


class Named:
    """A name of a module that is not here, as a pickle has it."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    def __init__(self, kind, key, count, view=()):
        self.saved = ("storage", Named("torch", kind), key, "cpu", count, *view)


class Tensor:
    def __init__(self, storage, start, shape, strides):
        self.given = (storage, start, shape, strides, False, collections.OrderedDict())


class Pickler(pickle._Pickler):
    """Writes the above as PyTorch does."""

    def persistent_id(self, given):
        return given.saved if isinstance(given, Storage) else None

    def save(self, given, save_persistent_id=True):
        if isinstance(given, Named):
            self.write(pickle.GLOBAL + f"{given.module}\n{given.name}\n".encode())
        elif isinstance(given, Tensor):
            self.save(Named("torch._utils", "_rebuild_tensor_v2"))
            self.save(given.given)
            self.write(pickle.REDUCE)
        else:
            super().save(given, save_persistent_id)


def pickled(*given):
    written = io.BytesIO()
    for one in given:
        Pickler(written, 2).dump(one)
    return written.getvalue()


def archive(tensors, storages):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("any name/data.pkl", pickled(tensors))
        for key, elements in storages.items():
            file.writestr(f"any name/data/{key}", elements.tobytes())
    return written.getvalue()


def sequence(tensors, storages):
    begin = pickled(0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, tensors, sorted(storages))
    parts = [struct.pack("<q", len(storages[key])) + storages[key].tobytes() for key in sorted(storages)]
    return begin + b"".join(parts)


@pytest.mark.parametrize("form", [archive, sequence])
def test_each_tensor_is_its_stretch_of_its_storage(form, tmp_path):
    storages = {"0": MATRIX.ravel(), "1": np.asarray([1, 2, 3], np.float64), "2": np.asarray([7], np.int64)}
    view = ("a view", 4, 8) if form is sequence else None
    tensors = collections.OrderedDict(
        whole=Tensor(Storage("FloatStorage", "0", 12), 0, (3, 4), (4, 1)),
        turned=Tensor(Storage("FloatStorage", "0", 12), 4, (4, 2), (1, 4)),
        empty=Tensor(Storage("FloatStorage", "0", 12), 0, (0, 4), (4, 1)),
        scalar=Tensor(Storage("FloatStorage", "0", 12), 5, (), ()),
        double=Tensor(Storage("DoubleStorage", "1", 3), 0, (3,), (1,)),
        integer=Tensor(Storage("LongStorage", "2", 1), 0, (1,), (1,)),
        viewed=Tensor(Storage("FloatStorage", "0", 12, (view,) if view else ()), 0 if view else 4, (2,), (1,)),
    )
    tensors._metadata = {"": {"version": 1}}  # as a state dict has
    tensors["extra"] = 3
    (tmp_path / "w.bin").write_bytes(form(tensors, storages))
    found = read_tensors(tmp_path / "w.bin")
    assert list(found) == ["whole", "turned", "empty", "scalar", "double", "viewed"]
    np.testing.assert_array_equal(found["whole"], MATRIX)
    np.testing.assert_array_equal(found["turned"], MATRIX[1:].T)
    np.testing.assert_array_equal(found["viewed"], [4, 5])
    assert found["empty"].shape == (0, 4) and found["scalar"] == 5 and found["double"].dtype == np.float32


class Ran:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("form", [archive, sequence])
def test_what_a_pickle_would_run_is_refused(form, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(form({"evil": Ran()}, {}))
    line = refused(lambda: read_tensors(tmp_path / "w.bin"))
    assert line.startswith(f"{tmp_path / 'w.bin'} names ") and "mkdir" in line and "nothing else is loaded" in line
    assert [path.name for path in tmp_path.iterdir()] == ["w.bin"]


@pytest.mark.parametrize("form", [archive, sequence])
@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(Storage("FloatStorage", "0", 12), 10**9, (3, 4), (4, 1)),
        Tensor(Storage("FloatStorage", "0", 12), -8, (3, 4), (4, 1)),
        Tensor(Storage("FloatStorage", "0", 12), 0, (3, 4), (4, -1)),
        Tensor(Storage("FloatStorage", "0", 12), 0, (-3, 4), (4, 1)),
        Tensor(Storage("FloatStorage", "0", 12), 0, (3,), (4, 1)),
        Tensor(Storage("FloatStorage", "9", 12), 0, (3, 4), (4, 1)),
        Tensor(Storage("FloatStorage", "0", 12), 0, (2**40,), (0,)),
    ],
    ids=["beyond", "before", "backwards", "negative", "axes", "no storage", "one element for all"],
)
def test_a_tensor_out_of_its_storage_is_one_line(form, tensor, tmp_path, refused):
    (tmp_path / "w.bin").write_bytes(form({"bad": tensor}, {"0": MATRIX.ravel()}))
    line = refused(lambda: read_tensors(tmp_path / "w.bin"))
    assert "is not a readable file of weights" in line and "download it again" in line


def test_a_pickle_that_asks_for_memory_is_one_line(tmp_path, refused):
    asking = pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + struct.pack("<Q", 2**28) + pickle.STOP
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as file:
        file.writestr("any name/data.pkl", asking)
    tracemalloc.start()
    try:
        line = refused(lambda: read_tensors(tmp_path / "w.bin"))
        assert "is not a readable file of weights" in line and "download it again" in line
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
