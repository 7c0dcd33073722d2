"""safetensors files: read and written in shards, and what is said of damaged ones."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxlora.interop.tensors import INDEX, TensorFiles, model_files, write_sharded

SINGLE = "model.safetensors"
NORMAL = np.random.default_rng(0).normal(size=(6, 4))
TENSORS = {
    "a.weight": NORMAL.astype(np.float32),
    "b.weight": NORMAL[:3].astype(np.float16),
    "c.weight": NORMAL[3:].astype(ml_dtypes.bfloat16),
    "d.weight": NORMAL[0].astype(np.float32),
}
BYTES = {name: x.nbytes for name, x in TENSORS.items()}


@pytest.fixture
def single(tmp_path):
    """A directory with one file of the tensors."""
    write_sharded(tmp_path, BYTES, TENSORS.__getitem__)
    return tmp_path


def write_raw(path, header: bytes | dict, data: bytes = b"", length: int | None = None):
    """A safetensors file by hand; `length` is what its first eight bytes say of the header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("shard_bytes, files", [(10**9, 1), (124, 2), (48, 3), (1, 4)])
def test_what_is_written_is_read_in_any_number_of_files(tmp_path, shard_bytes, files):
    made = []
    write_sharded(tmp_path, BYTES, lambda name: made.append(name) or TENSORS[name], shard_bytes)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert made == list(TENSORS) and len(paths) == files
    for path in paths:
        with safe_open(path, "numpy") as file:
            held = list(file.keys())
            assert file.metadata() == {"format": "pt"}
        assert len(held) == 1 or sum(BYTES[name] for name in held) <= shard_bytes
    source = model_files(tmp_path)
    assert source.names == sorted(TENSORS)
    for name, value in TENSORS.items():
        assert (source.shape(name), source.bytes(name)) == (value.shape, value.nbytes)
        for found, wanted in [(source.read(name), value), (source.read(name, (slice(1, 3),)), value[1:3])]:
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, wanted)
    assert [source.dtype(name) for name in sorted(TENSORS)] == ["F32", "F16", "BF16", "F32"]


def test_index_says_where_each_tensor_is(tmp_path):
    write_sharded(tmp_path, BYTES, TENSORS.__getitem__, 48)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(BYTES.values())}
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["weight_map"] == dict(zip(sorted(TENSORS), [names[0], names[1], names[1], names[2]], strict=True))


def test_parts_of_two_axes_are_read(single):
    part = (slice(2, 5), slice(1, 3))
    np.testing.assert_array_equal(model_files(single).read("a.weight", part), TENSORS["a.weight"][part])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02, 0.3, 0.5, 0.999])
def test_truncated_file_is_refused(single, share, refused):
    path = single / SINGLE
    os.truncate(path, int(share * path.stat().st_size))
    assert f"{path} is truncated or not a safetensors file; download it again" in refused(lambda: model_files(single))


ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "header, length",
    [
        *((b"{}", length) for length in (0, 3, 2**31, 2**60, 2**62, 2**63, 2**64 - 1)),
        (b"not JSON", None),
        (b"[]", None),
        (b"\xff\xfe", None),
        (b"[" * 10_000, None),
        (b"\x80\x04\x95pickle", None),
        ({"a": 3}, None),
        ({"a": {**ONE["a"], "shape": [3]}}, None),
        ({"a": {**ONE["a"], "shape": [-2]}}, None),
        ({"a": {**ONE["a"], "shape": [2**62, 2**62]}}, None),
        ({"a": {**ONE["a"], "dtype": "F33"}}, None),
        ({"a": {**ONE["a"], "data_offsets": [8, 0]}}, None),
        ({"a": {**ONE["a"], "data_offsets": [0, 2**60]}}, None),
        ({"a": {**ONE["a"], "data_offsets": [2**60, 2**60 + 8]}}, None),
        ({**ONE, "b": ONE["a"]}, None),
        ({}, None),
    ],
)
def test_damaged_header_is_refused(tmp_path, header, length, refused):
    path = tmp_path / SINGLE
    write_raw(path, header, bytes(8), length)
    assert f"{path} is truncated or not a safetensors file; download it again" in refused(lambda: model_files(tmp_path))


def test_what_is_no_file_is_refused(tmp_path, refused):
    (tmp_path / SINGLE).mkdir()
    assert f"{tmp_path / SINGLE} is truncated or not a safetensors file" in refused(lambda: model_files(tmp_path))


def test_well_made_file_by_hand_is_read(tmp_path):
    write_raw(tmp_path / SINGLE, ONE, np.asarray([1.5, 2.5], np.float32).tobytes())
    np.testing.assert_array_equal(model_files(tmp_path).read("a"), [1.5, 2.5])


@pytest.mark.parametrize(
    "dtype, width",
    [("F64", 8), ("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("U8", 1), ("I32", 4), ("I64", 8), ("BOOL", 1)],
)
def test_other_dtypes_are_refused(tmp_path, dtype, width, refused):
    form = {"dtype": dtype, "shape": [2], "data_offsets": [8, 8 + 2 * width]}
    write_raw(tmp_path / SINGLE, {**ONE, "b": form}, bytes(8 + 2 * width))
    assert (
        f"{tmp_path / SINGLE}: tensor 'b' is stored as {dtype}; convert it to float32, bfloat16 or float16"
        in refused(lambda: model_files(tmp_path))
    )


def test_tensor_that_is_not_there_is_refused(single, refused):
    source = model_files(single)
    source.check("a.weight", (6, 4), "config.json")
    assert f"{single} has no tensor 'e.weight', which config.json asks for; download it again" in refused(
        lambda: source.check("e.weight", (6, 4), "config.json")
    )


def test_tensor_of_another_shape_is_refused(single, refused):
    assert (
        f"{single / SINGLE}: tensor 'a.weight' is [6, 4], config.json makes it [4, 6]; download both again"
        in refused(lambda: model_files(single).check("a.weight", (4, 6), "config.json"))
    )


def test_tensor_in_two_files_is_refused(tmp_path, refused):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "1.safetensors")
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "2.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert f"{tmp_path}/2.safetensors: tensor 'a' is in 1.safetensors too; remove one" in refused(
        lambda: model_files(tmp_path)
    )


def test_file_that_changes_meanwhile_is_refused(single, refused):
    source, path = model_files(single), single / SINGLE
    os.truncate(path, path.stat().st_size - 1)
    assert f"{path} cannot be read any more; was it changed meanwhile?" in refused(lambda: source.read("a.weight"))
    assert f"{path} cannot be read any more" in refused(lambda: source.read("a.weight", (slice(2),)))
    path.unlink()
    assert f"{path} cannot be read any more" in refused(lambda: source.read("a.weight"))


def test_tensor_that_is_gone_meanwhile_is_refused(single, refused):
    source = model_files(single)
    save_file({"other": np.zeros(2, np.float32)}, single / SINGLE)
    assert f"{single / SINGLE} cannot be read any more; was it changed meanwhile?" in refused(
        lambda: source.read("a.weight")
    )


def test_missing_file_is_refused(tmp_path, refused):
    path = tmp_path / "adapter_model.safetensors"
    assert f"{path} is missing; download it again" in refused(lambda: TensorFiles([path]))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused(single, name, refused):
    os.rename(single / SINGLE, single / name)
    assert f"{single} has only pickled weights, which are never loaded; convert them" in refused(
        lambda: model_files(single)
    )


def test_directory_without_weights_is_refused(tmp_path, refused):
    assert f"{tmp_path} has no {SINGLE}; give the directory of a Hugging Face LLaMA" in refused(
        lambda: model_files(tmp_path)
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[]", b"\xff", b"[" * 100_000]
    + [json.dumps({"weight_map": value}).encode() for value in (3, {}, ["a"], {"a": 3}, {"a": None}, {"a": ["b"]})],
)
def test_damaged_index_is_refused(single, content, refused):
    (single / INDEX).write_bytes(content)
    assert f"{single / INDEX} is damaged; download it again" in refused(lambda: model_files(single))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a/../../b", "./b", "/"]
)
def test_index_that_leaves_its_directory_is_refused(single, name, refused):
    (single / INDEX).write_text(json.dumps({"weight_map": {"a.weight": SINGLE, "b.weight": name}}))
    assert f"{single / INDEX} names a file outside its directory" in refused(lambda: model_files(single))


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "a\0b", "a" * 5000])
def test_index_that_names_a_missing_file_is_refused(single, name, refused):
    (single / INDEX).write_text(json.dumps({"weight_map": {"a.weight": name}}))
    line = refused(lambda: model_files(single))
    assert name in line and f"is missing although {INDEX} names it; download it again" in line
