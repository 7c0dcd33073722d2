"""PEFT directories: out, in and out again the same bytes; and what is no adapter is told in one line."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlora import exchange
from jaxlora.data.tokens import Tokenizer
from jaxlora.interop import huggingface, peft
from jaxlora.interop.llama_config import read_config
from jaxlora.models.lora_spec import MODULES, LoraSpec

ALL, PREFIX = tuple(MODULES), "base_model.model."
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FILES = ("adapter_config.json", "adapter_model.safetensors", "jaxlora.json")
SPECS = {
    "plain": LoraSpec(4, 6.0),
    "all-linear": LoraSpec(3, 6.0, targets=("all-linear",), dropout=0.1),
    "regex": LoraSpec(3, 6.0, targets=(r".*layers\.0\.mlp.*", "self_attn.v_proj")),
    "patterns": LoraSpec(4, 6.0, ranks=(("q_proj", 2), (r".*\.1\..*v_proj", 7)), alphas=((r".*\.0\..*", 3.5),)),
    "rslora": LoraSpec(4, 6.0, rslora=True),
    "dora": LoraSpec(4, 6.0, targets=ALL, dora=True),
    "layers": LoraSpec(4, 6.0, layers=(1,)),
    "pissa": LoraSpec(4, 6.0, init="pissa"),
    "pissa, rslora, patterns": LoraSpec(4, 6.0, init="pissa", rslora=True, ranks=((r".*\.1\..*v_proj", 2),)),
}
SPECS["dora, rslora, patterns"] = dataclasses.replace(SPECS["patterns"], dora=True, rslora=True)


@pytest.fixture(scope="module")
def shape(small_base):
    return read_config(small_base)


@pytest.fixture
def written(tmp_path, shape, random_adapter):
    """An adapter's folder to damage: with a head and DoRA, or plain, `written(head)`."""

    def write(head=False):
        folder = tmp_path / "adapter"
        peft.write(folder, random_adapter(shape, LoraSpec(2, 4.0, dora=head), 3 if head else 0), "base")
        return folder

    return write


def edit_tensors(folder, function):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(function(tensors) or tensors, folder / "adapter_model.safetensors")


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def assert_same(found, wanted):
    """That two adapters are the same, value for value."""
    assert found.spec == wanted.spec and found.layers == wanted.layers
    assert list(found.weights) == list(wanted.weights)
    for module, here in wanted.weights.items():
        assert set(found.weights[module]) == set(here)
        for leaf, value in here.items():
            np.testing.assert_array_equal(found.weights[module][leaf], value)
            assert found.weights[module][leaf].dtype == np.float32
    np.testing.assert_array_equal(found.head, wanted.head)


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("option", SPECS)
def test_written_read_and_written_again_are_the_same_bytes(option, labels, shape, random_adapter, tmp_path):
    adapter = random_adapter(shape, SPECS[option], labels, belongs={"base": "abc", "kind": "multiclass"})
    peft.write(tmp_path / "first", adapter, "base")
    found = peft.read(tmp_path / "first", shape)
    assert_same(found, adapter)
    assert found.belongs == {"base": "abc", "kind": "multiclass"}
    values = peft.to_parameters(found, "clinical")
    again = peft.from_parameters(values, "clinical", found.spec, found.belongs)
    again = dataclasses.replace(again, head=values.get(("head", "kernel")))
    assert_same(again, adapter)
    peft.write(tmp_path / "second", again, "base")
    assert bytes_of(tmp_path / "second") == bytes_of(tmp_path / "first")


@pytest.mark.parametrize("option, labels", [("dora, rslora, patterns", 0), ("regex", 3)])
def test_exported_imported_and_exported_are_the_same_bytes(option, labels, shape, small_base, random_adapter, tmp_path):
    kind = {"kind": "multilabel", "labels": [f"label {i}" for i in range(labels)]} if labels else {}
    belongs = {"base": huggingface.fingerprint(small_base), "tokenizer": Tokenizer(small_base).fingerprint, **kind}
    first, second = tmp_path / "first", tmp_path / "second"
    peft.write(first, random_adapter(shape, SPECS[option], labels, belongs=belongs), small_base.name)
    exchange.import_adapter(str(first), str(small_base), "downstream", str(tmp_path / "run"))
    exchange.export_adapter(str(tmp_path / "run"), str(second))
    assert bytes_of(second) == bytes_of(first)


def test_a_pissa_adapter_is_the_plain_one_of_what_it_adds(shape, random_adapter):
    """Of random factors, [A | A0] [B ; -B0] at the scale of the adapter."""
    spec = SPECS["pissa, rslora, patterns"]
    adapter = random_adapter(shape, spec)
    assert adapter.spec.init == "lora"
    for module, here in adapter.weights.items():
        size, plain = spec.size_of(module), adapter.size(module)
        assert plain.rank == 2 * size.rank == here["a"].shape[1] == here["b"].shape[0]
        assert plain.scale == pytest.approx(size.scale, rel=1e-12)


def test_parameters_are_zero_where_a_layer_has_no_rank(shape, random_adapter):
    spec = LoraSpec(2, 4.0, targets=(r".*\.0\..*q_proj", "v_proj"), ranks=((r".*\.1\..*v_proj", 5),), dora=True)
    values = peft.to_parameters(random_adapter(shape, spec), "clinical")
    q, v = (
        {leaf: values["blocks", part, "adapters", "clinical", leaf] for leaf in ("a", "b", "magnitude")}
        for part in ("q_proj", "v_proj")
    )
    assert q["a"].shape == (2, 32, 2) and not np.any(q["a"][1]) and not np.any(q["b"][1])
    assert np.all(q["magnitude"][1] == 1.0) and np.all(q["magnitude"][0] > 1.0)
    assert v["a"].shape == (2, 32, 5) and not np.any(v["a"][0, :, 2:]) and not np.any(v["b"][0, 2:])
    assert np.all(v["a"][1]) and np.all(v["b"][1])


HEADS = ["score.weight", "score.modules_to_save.weight", "score.modules_to_save.default.weight"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("form", ["today", "default", "2024"])
def test_names_that_peft_wrote_in_other_years_are_read(form, head, written, shape):
    folder = written(head=True)
    wanted = peft.read(folder, shape)

    def renamed(name):
        name = name.replace("score.weight", head)
        if form == "default":  # a state dict that was saved as it was
            return name.replace(".weight", ".default.weight").replace("_vector", "_vector.default.weight")
        return name.replace("_vector", "_vector.weight") if form == "2024" else name

    def rename(tensors):
        return {name if "score" in name and form == "default" else renamed(name): x for name, x in tensors.items()}

    edit_tensors(folder, rename)
    assert_same(peft.read(folder, shape), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(dtype, written, shape):
    folder = written()
    halves = {}

    def halve(tensors):
        import ml_dtypes

        kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
        halves.update({name: x.astype(kind) for name, x in tensors.items()})
        return halves

    edit_tensors(folder, halve)
    found = peft.read(folder, shape).weights["model.layers.0.self_attn.q_proj"]["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, halves[A].astype(np.float32).T)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


def without(name):
    return lambda tensors: {other: value for other, value in tensors.items() if other != name}


DAMAGED = {
    "missing": (without(A), f"has no tensor {A!r}"),
    "extra": (put(f"{PREFIX}model.norm.weight", np.zeros(32, np.float32)), "model.norm.weight' has no place"),
    "another layer": (put(A.replace(".0.", ".7."), np.zeros((2, 32), np.float32)), "has no place"),
    "twice": (put(A.replace("_A.", "_A.default."), np.zeros((2, 32), np.float32)), "are the same tensor"),
    "transposed": (lambda t: t.update({A: t[A].T.copy()}), "is [32, 2]"),
    "another rank": (lambda t: t.update({A: t[A][:1]}), "is [1, 32]"),
    "flat": (lambda t: t.update({A: t[A].ravel()}), "is [64]"),
    "integers": (lambda t: t.update({A: t[A].astype(np.int32)}), "is stored as I32"),
    "doubles": (lambda t: t.update({A: t[A].astype(np.float64)}), "is stored as F64"),
    "NaN": (lambda t: t[A].__setitem__((0, 0), np.nan), "holds NaN or infinity"),
    "infinite": (lambda t: t[A].__setitem__((0, 0), -np.inf), "holds NaN or infinity"),
    "no tensors": (lambda t: {"x": np.zeros(1, np.float32)}, "has no tensor"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_tensors_that_do_not_fit_are_refused_by_name(case, written, shape, refused):
    function, part = DAMAGED[case]
    folder = written()
    edit_tensors(folder, function)
    line = refused(lambda: peft.read(folder, shape))
    assert str(folder / "adapter_model.safetensors") in line and part in line


HEADLESS = {
    "missing": (without(f"{PREFIX}score.weight"), "has no tensor 'base_model.model.score.weight'"),
    "of another width": (put(f"{PREFIX}score.weight", np.zeros((3, 31), np.float32)), "is [3, 31]"),
    "NaN": (put(f"{PREFIX}score.weight", np.full((3, 32), np.nan, np.float32)), "holds NaN"),
    "flat": (put(f"{PREFIX}score.weight", np.zeros(96, np.float32)), "is [96]"),
    "without an axis": (put(f"{PREFIX}score.weight", np.zeros((), np.float32)), "is []"),
    "no labels": (put(f"{PREFIX}score.weight", np.zeros((0, 32), np.float32)), "score.weight"),
    "with a bias": (put(f"{PREFIX}score.bias", np.zeros(3, np.float32)), "score.bias' has no place"),
    "magnitude missing": (
        without(A.replace("lora_A.weight", "lora_magnitude_vector")),
        "lora_magnitude_vector'",
    ),
}


@pytest.mark.parametrize("case", HEADLESS)
def test_a_head_that_does_not_fit_is_refused_by_name(case, written, shape, refused):
    function, part = HEADLESS[case]
    folder = written(head=True)
    edit_tensors(folder, function)
    line = refused(lambda: peft.read(folder, shape))
    assert str(folder / "adapter_model.safetensors") in line and part in line


def test_a_head_that_the_config_does_not_name_is_refused(written, shape, refused):
    folder = written(head=True)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, "task_type": "CAUSAL_LM", "modules_to_save": None}))
    assert "score.weight' has no place" in refused(lambda: peft.read(folder, shape))


BROKEN_FILES = {
    "empty": lambda old: b"",
    "truncated": lambda old: old[: len(old) // 2],
    "header cut short": lambda old: old[:20],
    "absurd header": lambda old: (2**63 - 1).to_bytes(8, "little") + old[8:],
    "header of a terabyte": lambda old: (10**12).to_bytes(8, "little") + old[8:],
    "header is no JSON": lambda old: old[:8] + b"#" * (len(old) - 8),
    "offsets beyond the file": lambda old: old.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'),
    "pickle": lambda old: b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_damaged_file_is_one_line(case, written, shape, refused):
    folder = written()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(BROKEN_FILES[case](path.read_bytes()))
    line = refused(lambda: peft.read(folder, shape))
    assert str(path) in line and "truncated or not a safetensors file" in line


def test_a_pickled_adapter_is_never_loaded(written, shape, refused):
    folder = written()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "only a pickled adapter_model.bin, which is never loaded" in refused(lambda: peft.read(folder, shape))
    (folder / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors is missing" in refused(lambda: peft.read(folder, shape))


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000], ids=["empty", "list", "cut", "deep"])
def test_damaged_belongings_are_one_line(content, written, shape, refused):
    folder = written()
    (folder / "jaxlora.json").write_text(content)
    line = refused(lambda: peft.read(folder, shape))
    assert str(folder / "jaxlora.json") in line and "is not a JSON object" in line


def test_an_adapter_of_peft_belongs_to_whatever_base_fits(written, shape):
    folder = written()
    (folder / "jaxlora.json").unlink()
    assert peft.read(folder, shape).belongs == {}


def test_an_adapter_of_a_larger_base_is_refused(written, shape, refused):
    folder = written()
    assert "the base's config.json makes it [2, 64]" in refused(
        lambda: peft.read(folder, dataclasses.replace(shape, embed=64))
    )
    line = refused(lambda: peft.read(folder, dataclasses.replace(shape, layers=3)))
    assert "has no tensor" in line and "layers.2." in line
    assert "has no place" in refused(lambda: peft.read(folder, dataclasses.replace(shape, layers=1)))


BELONGINGS = {
    "kind": {"kind": "regression"},
    "kind is a list": {"kind": []},
    "labels": {"labels": ["only one"]},
    "labels are a number": {"labels": 5},
    "labels are numbers": {"labels": [1, 2, 3]},
    "labels are a word": {"labels": "abc"},
}


@pytest.mark.parametrize("case", BELONGINGS)
def test_labels_that_do_not_fit_the_head_are_refused(case, written, small_base, tmp_path, refused):
    folder, workdir = written(head=True), str(tmp_path / "run")
    (folder / "jaxlora.json").write_text(json.dumps(BELONGINGS[case]))
    line = refused(lambda: exchange.import_adapter(str(folder), str(small_base), "clinical", workdir))
    assert str(folder / "jaxlora.json") in line and "does not fit the head of 3 labels" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["base", "tokenizer"])
def test_an_adapter_of_another_base_is_taken_only_where_that_is_allowed(what, written, small_base, tmp_path, refused):
    folder, workdir = written(), str(tmp_path / "run")
    (folder / "jaxlora.json").write_text(json.dumps({what: "another"}))
    assert f"belongs to another {what}; give that one, or --allow-base-mismatch" in refused(
        lambda: exchange.import_adapter(str(folder), str(small_base), "clinical", workdir)
    )
    exchange.import_adapter(str(folder), str(small_base), "clinical", workdir, allow_base_mismatch=True)
    assert "holds a run already" in refused(
        lambda: exchange.import_adapter(str(folder), str(small_base), "clinical", workdir, True)
    )
