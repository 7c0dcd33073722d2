"""Hugging Face directories in and out, and what is said of a damaged one."""

import dataclasses
import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlora.errors import UserError
from jaxlora.interop import huggingface
from jaxlora.models.llama import Llama
from jaxlora.models.lora import LoraSpec
from jaxlora.partition import partition_of, select
from jaxlora.train.mesh import make_mesh, shardings

pytestmark = pytest.mark.usefixtures("quick_compiles")


def load(folder, **changes) -> nnx.State:
    """The base of a directory."""
    shape = dataclasses.replace(huggingface.read_config(folder), **changes)
    abstract = nnx.eval_shape(lambda: Llama(shape, {"clinical": LoraSpec(2, 4.0)}, 3, rngs=nnx.Rngs(0)))
    placed = shardings(make_mesh(1, 1), nnx.state(abstract))
    wanted = {path: where for path, where in placed.items() if partition_of(path) == "base"}
    return huggingface.load_base(folder, abstract, wanted, lambda _: None)


def leaves(state) -> dict:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def assert_same_bits(found, wanted):
    found, wanted = leaves(found), leaves(wanted)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value, err_msg=str(path))


@pytest.fixture
def base(small_base, tmp_path):
    """A copy to damage."""
    return shutil.copytree(small_base, tmp_path / "base")


def edit_config(folder, **changes):
    """Sets fields of config.json; None removes one."""
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({field: value for field, value in raw.items() if value is not None}))


def edit_tensors(folder, edit):
    """Rewrites model.safetensors with what `edit` makes of its tensors, or leaves in them."""
    tensors = load_file(folder / "model.safetensors")
    tensors = edit(tensors) or tensors
    save_file(tensors, folder / "model.safetensors")


def cut_in_two(folder) -> dict:
    """Two files and their index, of the whole model; the contents of the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: x for name, x in tensors.items() if where[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_what_is_saved_is_loaded_bit_for_bit(random_llama, tmp_path, tied, kv_heads):
    model = random_llama({"clinical": LoraSpec(2, 4.0)}, 3, layers=2, tied=tied, kv_heads=kv_heads, rope_theta=5e5)
    huggingface.save(tmp_path, model)
    assert huggingface.read_config(tmp_path) == model.config
    assert_same_bits(load(tmp_path), select(nnx.state(model), ["base"]))
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied


def test_kernels_are_stored_as_torch_has_them(random_llama, tmp_path):
    model = random_llama(layers=2)
    huggingface.save(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(down, np.asarray(model.blocks.down_proj.kernel[...])[1].T)
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], model.embedding[...])
    np.testing.assert_array_equal(tensors["lm_head.weight"], np.asarray(model.lm_head[...]).T)


def test_logits_are_those_of_transformers(random_llama, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    shape = huggingface.read_config(tmp_path)
    model = nnx.merge(nnx.split(nnx.eval_shape(lambda: Llama(shape, rngs=nnx.Rngs(0))))[0], load(tmp_path))
    tokens = np.random.default_rng(0).integers(0, 50, (2, 20))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    definition, state = nnx.split(model)

    @jax.jit
    def run(state):
        model = nnx.merge(definition, state)
        return model.logits(model(tokens, np.ones((2, 20), int), np.tile(np.arange(20), (2, 1))))

    assert shape.rope_theta == 500.0
    np.testing.assert_allclose(run(state), wanted, atol=2e-4)
    ours = tmp_path / "ours"
    huggingface.save(ours, model)
    with torch.no_grad():
        again = LlamaForCausalLM.from_pretrained(ours)(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(again, wanted, atol=1e-5)


def test_files_of_an_index_are_read_as_one(base, small_base):
    cut_in_two(base)
    assert_same_bits(load(base), load(small_base))
    assert huggingface.fingerprint(base) == huggingface.fingerprint(small_base)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_are_read(base, small_base, stored):
    edit_tensors(base, lambda tensors: {name: x.astype(stored) for name, x in tensors.items()})
    wanted = load(small_base)
    for path, value in leaves(load(base)).items():
        np.testing.assert_array_equal(value, leaves(wanted)[path].astype(stored).astype(np.float32))


def test_bfloat16_files_keep_their_bits_in_a_bfloat16_model(base, small_base):
    edit_tensors(base, lambda tensors: {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()})
    found, wanted = leaves(load(base, dtype="bfloat16")), leaves(load(small_base))
    assert found[("norm", "scale")].dtype == np.float32
    kernel = ("blocks", "q_proj", "kernel")
    assert found[kernel].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found[kernel], wanted[kernel].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    "fields, theta",
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}, 7e5),
        ({"rope_theta": None, "rope_scaling": None}, 1e4),
    ],
)
def test_rope_theta_is_found_where_transformers_4_and_5_put_it(base, fields, theta):
    edit_config(base, **fields)
    assert huggingface.read_config(base).rope_theta == theta


def test_fields_that_old_files_lack_have_their_defaults(base):
    edit_config(base, num_key_value_heads=None, head_dim=None, tie_word_embeddings=None)
    config = huggingface.read_config(base)
    assert (config.kv_heads, config.head_dim, config.tied) == (4, 8, False)


def test_fingerprint_is_of_shape_and_weights_alone(base, small_base):
    known = huggingface.fingerprint(small_base)
    (base / "tokenizer.model").write_bytes(b"other")
    edit_config(base, torch_dtype="bfloat16")
    assert huggingface.fingerprint(base) == known

    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1.0

    edit_tensors(base, change)
    changed = huggingface.fingerprint(base)
    edit_config(base, rms_norm_eps=1e-6)
    assert len({known, changed, huggingface.fingerprint(base)}) == 3


def assert_refused(folder, *parts):
    """That the directory is refused, in one line that holds every one of `parts`."""
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_directory_without_config_is_refused(base):
    (base / "config.json").unlink()
    assert_refused(base, f"no {base}/config.json; give the directory of a Hugging Face LLaMA")


@pytest.mark.parametrize("content", ["", "{", "\x00", "[]", "null", '"llama"'])
def test_broken_config_is_refused(base, content):
    (base / "config.json").write_text(content)
    assert_refused(base, f"{base}/config.json is not a JSON object; download it again")


@pytest.mark.parametrize(
    "field",
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps"],
)
def test_config_without_a_field_is_refused(base, field):
    edit_config(base, **{field: None})
    assert_refused(base, f"{base}/config.json has no field '{field}'")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": [32]}, "a size is no number"),
        ({"num_attention_heads": "many"}, "a size is no number"),
        ({"rope_parameters": 3}, "rope_parameters is not an object"),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3 key-value heads"),
    ],
)
def test_config_with_a_field_of_another_type_is_refused(base, fields, message):
    edit_config(base, **fields)
    assert_refused(base, f"{base}/config.json: {message}")


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling = {'rope_type': 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = {'type': 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters = {'rope_type': 'yarn'"),
    ],
)
def test_model_that_is_not_computed_is_refused(base, fields, named):
    edit_config(base, **fields)
    assert_refused(base, f"{base}/config.json: {named}", "is not supported; this is not a plain LLaMA")


def test_pickled_weights_are_refused(base):
    os.rename(base / "model.safetensors", base / "pytorch_model.bin")
    assert_refused(base, f"{base} has only .bin (pickle) weights; convert them to safetensors first")


def test_directory_without_weights_is_refused(base):
    (base / "model.safetensors").unlink()
    assert_refused(base, f"{base} has no model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.00005, 0.01, 0.5, 0.999999])
def test_truncated_weights_are_refused(base, share):
    path = base / "model.safetensors"
    os.truncate(path, int(share * path.stat().st_size))
    assert_refused(base, f"{path} is truncated or not a safetensors file; download it again")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_missing_tensor_is_refused(base, name):
    edit_tensors(base, lambda tensors: {n: x for n, x in tensors.items() if n != name})
    assert_refused(base, f"{base} has no tensor '{name}'; it does not fit config.json")


def test_untied_model_without_a_head_is_refused(base):
    edit_config(base, tie_word_embeddings=False)
    assert_refused(base, f"{base} has no tensor 'lm_head.weight'")


def test_tensor_of_another_shape_is_refused(base):
    edit_config(base, intermediate_size=48)
    assert_refused(
        base, "model.safetensors: tensor 'model.layers.0.mlp.down_proj.weight' is [32, 64], config.json makes it"
    )


def test_tensor_of_another_number_of_axes_is_refused(base):
    edit_tensors(base, lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"][None]})
    assert_refused(base, "tensor 'model.norm.weight' is [1, 32], config.json makes it [32]")


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}']
)
def test_damaged_index_is_refused(base, content):
    (base / "model.safetensors.index.json").write_text(content)
    assert_refused(base, f"{base}/model.safetensors.index.json is damaged; download it again")


def test_index_that_names_a_missing_file_is_refused(base):
    index = cut_in_two(base)
    (base / index["weight_map"]["model.norm.weight"]).unlink()
    assert_refused(
        base, index["weight_map"]["model.norm.weight"], "is missing although model.safetensors.index.json names it"
    )


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a/b.safetensors", ""])
def test_index_that_leaves_its_directory_is_refused(base, name):
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert_refused(base, f"{base}/model.safetensors.index.json names a file outside its directory")
