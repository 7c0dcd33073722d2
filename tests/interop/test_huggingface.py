"""The base of Hugging Face directories: what is loaded of it, what is written, and how it is recognised."""

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlora.interop import huggingface
from jaxlora.interop.llama_config import read_config
from jaxlora.interop.tensors import write_sharded
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.quantized import dequantize, quantize
from jaxlora.models.rotary import Rope
from jaxlora.partition import select

WEIGHTS = "model.safetensors"
QKV = ("q_proj", "k_proj", "v_proj")
BIASES = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value, err_msg=str(path))


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_heads": 1, "tied": True},
        {"kv_heads": 4, "rope": Rope(5e5)},
        {"rope": Rope(1e4, "llama3", 8.0, 64, 1.0, 4.0), "head_dim": 6},
        {"window": 8},
        {"biases": QKV},
        {"biases": BIASES},
    ],
    ids=str,
)
@pytest.mark.parametrize("labels", [0, 3])
def test_what_is_saved_is_loaded_bit_for_bit(random_llama, load, tmp_path, fields, labels):
    model = random_llama({"clinical": LoraSpec(2, 4.0)}, labels, layers=2, **fields)
    huggingface.save(tmp_path, model)
    assert read_config(tmp_path) == model.config
    base = nnx.to_flat_state(select(nnx.state(model), ["base"]))
    assert_same_bits(load(tmp_path, labels), {path: np.asarray(leaf[...]) for path, leaf in base})
    tensors = load_file(tmp_path / WEIGHTS)
    assert ("lm_head.weight" in tensors) is not (model.config.tied or labels > 0)
    assert sum("bias" in name for name in tensors) == 2 * len(model.config.biases)


def test_kernels_are_stored_as_torch_has_them(random_llama, tmp_path):
    model = random_llama(layers=2, biases=QKV)
    huggingface.save(tmp_path, model)
    tensors = load_file(tmp_path / WEIGHTS)
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(down, np.asarray(model.blocks.down_proj.kernel[...])[1].T)
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.k_proj.bias"], model.blocks.k_proj.bias[...][1])
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], model.embedding[...])
    np.testing.assert_array_equal(tensors["lm_head.weight"], np.asarray(model.lm_head[...]).T)


def test_files_of_an_index_are_read_as_one(base, small_base, load):
    tensors = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    write_sharded(base, {name: x.nbytes for name, x in tensors.items()}, tensors.__getitem__, 20_000)
    assert len(list(base.glob("*.safetensors"))) > 2
    assert_same_bits(load(base), load(small_base))
    assert huggingface.fingerprint(base) == huggingface.fingerprint(small_base)
    assert huggingface.base_bytes(base) == sum(x.nbytes for x in tensors.values())


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_are_read(base, small_base, edit_tensors, load, stored):
    edit_tensors(lambda tensors: {name: x.astype(stored) for name, x in tensors.items()})
    wanted = {path: x.astype(stored).astype(np.float32) for path, x in load(small_base).items()}
    assert_same_bits(load(base), wanted)


def test_bfloat16_files_keep_their_bits_in_a_bfloat16_model(base, small_base, edit_tensors, load):
    edit_tensors(lambda tensors: {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()})
    found, wanted = load(base, dtype="bfloat16"), load(small_base)
    assert found[("norm", "scale")].dtype == np.float32
    kernel = ("blocks", "q_proj", "kernel")
    assert found[kernel].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found[kernel], wanted[kernel].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_base_is_quantised_as_it_is_read(base, small_base, load, monkeypatch, precision):
    told, read = {}, huggingface.load_base
    monkeypatch.setattr(huggingface, "load_base", lambda *args: read(*args, quantized=told.__setitem__))
    found, wanted = load(base, quantize=precision), load(small_base)
    for path, value in wanted.items():
        if path[-1] != "kernel":
            np.testing.assert_array_equal(found[path], value)
            continue
        codes, scales = quantize(value, precision)
        np.testing.assert_array_equal(found[*path, "codes"], codes)
        np.testing.assert_array_equal(found[*path, "scales"], scales)
        for i, name in enumerate(huggingface.tensor_names(path, 2)):
            back = np.asarray(dequantize(codes[i], scales[i], np.float32))
            error = np.linalg.norm(back - value[i]) / np.linalg.norm(value[i])
            assert told[name] == pytest.approx(error, rel=1e-3)
    assert len(told) == 14 and len(found) == len(wanted) + 7


def test_head_of_a_merged_model_is_read(base, edit_tensors, load):
    score = np.arange(96, dtype=np.float32).reshape(3, 32)
    edit_tensors(lambda tensors: tensors | {"score.weight": score})
    np.testing.assert_array_equal(load(base, 3, head=True)[("head", "kernel")], score.T)


@pytest.mark.parametrize(
    "name, labels",
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", 0),
        ("lm_head.weight", 0),  # of a tied model
        ("lm_head.weight", 3),
        ("score.weight", 0),
        ("score.weight", 3),  # of another task: the head is made anew
    ],
)
def test_tensor_without_a_use_is_ignored(base, small_base, edit_tensors, load, name, labels):
    edit_tensors(lambda tensors: tensors | {name: np.full((2, 3), np.nan, np.float32)})
    assert_same_bits(load(base, labels), load(small_base))


def test_untied_model_with_a_head_needs_no_unembedding(base, edit_config, load):
    edit_config(tie_word_embeddings=False)
    assert ("lm_head",) not in load(base, 3)


def test_progress_counts_the_bytes_of_every_tensor(base, monkeypatch, load):
    seen, read = [], huggingface.load_base
    monkeypatch.setattr(huggingface, "load_base", lambda *arguments: read(*arguments, seen.append))
    load(base)
    assert sum(seen) == huggingface.base_bytes(base) and len(seen) == len(load_file(base / WEIGHTS))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_missing_tensor_is_refused(base, edit_tensors, load, refused, name):
    edit_tensors(lambda tensors: {n: x for n, x in tensors.items() if n != name})
    line = refused(lambda: load(base))
    assert f"{base} has no tensor '{name}', which config.json asks for" in line and "download it again" in line


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"tie_word_embeddings": False}, "lm_head.weight"),
        ({"model_type": "qwen2"}, "model.layers.0.self_attn.k_proj.bias"),
        ({"mlp_bias": True}, "model.layers.0.mlp.down_proj.bias"),
        ({"num_hidden_layers": 3}, "model.layers.2."),
    ],
    ids=str,
)
def test_tensor_that_only_the_config_has_is_refused(base, edit_config, load, refused, fields, name):
    edit_config(**fields)
    line = refused(lambda: load(base))
    assert f"{base} has no tensor '{name}" in line and "which config.json asks for; download it again" in line


def test_missing_head_is_refused(base, load, refused):
    assert f"{base} has no tensor 'score.weight'" in refused(lambda: load(base, 3, head=True))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.up_proj.qweight",
        "anything",
    ],
)
def test_tensor_that_the_config_has_not_is_refused(base, edit_tensors, load, refused, name):
    edit_tensors(lambda tensors: tensors | {name: np.zeros(32, np.float32)})
    message = f"{base / WEIGHTS}: tensor '{name}' has no place in the model that config.json makes; download both again"
    assert message in refused(lambda: load(base))


def test_fewer_layers_than_the_files_have_are_refused(base, edit_config, load, refused):
    edit_config(num_hidden_layers=1)
    line = refused(lambda: load(base))
    assert "tensor 'model.layers.1." in line and "has no place in the model that config.json makes" in line


def test_tensor_of_another_shape_is_refused(base, edit_config, load, refused):
    edit_config(intermediate_size=48)
    name = "model.layers.0.mlp.down_proj.weight"
    message = f"{base / WEIGHTS}: tensor '{name}' is [32, 64], config.json makes it [32, 48]; download both again"
    assert message in refused(lambda: load(base))


@pytest.mark.parametrize("shape", [(1, 32), (32, 1), (33,), ()])
def test_tensor_of_another_number_of_axes_is_refused(base, edit_tensors, load, refused, shape):
    edit_tensors(lambda tensors: tensors | {"model.norm.weight": np.ones(shape, np.float32)})
    assert f"tensor 'model.norm.weight' is {list(shape)}, config.json makes it [32]" in refused(lambda: load(base))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight", "model.norm.weight"]
)
def test_weight_that_is_no_number_is_refused(base, edit_tensors, load, refused, value, stored, name):
    def damage(tensors):
        tensors = {name: x.astype(stored) for name, x in tensors.items()}
        tensors[name].flat[-1] = value
        return tensors

    edit_tensors(damage)
    assert f"{base / WEIGHTS}: tensor '{name}' holds NaN or infinity; download it again" in refused(lambda: load(base))


def test_damage_is_told_before_anything_is_on_the_devices(base, edit_tensors, load, refused, monkeypatch):
    edit_tensors(lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"].astype(np.float64)})
    monkeypatch.setattr(huggingface, "_read_ahead", None)
    assert f"{base / WEIGHTS}: tensor 'model.norm.weight' is stored as F64; convert it to float32" in refused(
        lambda: load(base)
    )


def test_fingerprint_is_of_shape_and_weights_alone(base, small_base, edit_config, edit_tensors):
    known = huggingface.fingerprint(small_base)
    for path in base.glob("token*"):
        path.write_bytes(b"other")
    edit_config(torch_dtype="bfloat16", eos_token_id=7)
    assert huggingface.fingerprint(base) == known
    edit_config(rms_norm_eps=1e-6)
    other = huggingface.fingerprint(base)
    edit_tensors(lambda tensors: {name: x.astype(np.float16) for name, x in tensors.items()})
    assert len({known, other, huggingface.fingerprint(base)}) == 3


@pytest.mark.parametrize(
    "name, rows",  # 64 of the embedding's 400 are read, of others all
    [
        ("model.embed_tokens.weight", (0, 6, 196, 203, 399)),
        ("model.layers.1.mlp.up_proj.weight", (0, 31, 63)),
        ("model.layers.0.input_layernorm.weight", (0, 31)),
    ],
)
def test_fingerprint_changes_with_every_row_that_it_reads(base, edit_tensors, name, rows):
    def change(row):
        def edit(tensors):
            tensors[name].reshape(len(tensors[name]), -1)[row, -1] += 1.0

        return edit

    seen = {huggingface.fingerprint(base)}
    for row in rows:
        edit_tensors(change(row))
        seen.add(huggingface.fingerprint(base))
    assert len(seen) == len(rows) + 1
    if name == "model.embed_tokens.weight":
        edit_tensors(change(1))  # between the rows
        assert huggingface.fingerprint(base) in seen


def test_fingerprint_tells_the_name_of_a_tensor(base, edit_tensors):
    known, names = huggingface.fingerprint(base), [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    edit_tensors(lambda tensors: tensors | {a: tensors[b] for a, b in (names, names[::-1])})
    assert huggingface.fingerprint(base) != known


def test_fingerprint_of_damaged_weights_is_refused(base, refused):
    save_file({"a": np.zeros(2, np.int8)}, base / WEIGHTS)
    assert f"{base / WEIGHTS}: tensor 'a' is stored as I8; convert it" in refused(lambda: huggingface.fingerprint(base))
