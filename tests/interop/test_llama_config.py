"""config.json, as it is published, as it is written, and as it may be damaged."""

import json

import pytest

from jaxlora.interop.llama_config import read_config, stop_tokens, to_json
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.rotary import Rope

PLAIN = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
}
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
QKV = ATTENTION[:3]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def sizes(*values):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**dict(zip((*names, "num_key_value_heads"), values, strict=False)), "hidden_act": "silu"}


# The fields that matter of published files.
PUBLISHED = {
    "Llama 2 7B": (
        {**sizes(32000, 4096, 11008, 32, 32, 32), "model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": None}
        | {"max_position_embeddings": 4096, "pretraining_tp": 1, "tie_word_embeddings": False},
        LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128),
    ),
    "Llama 3.1 8B": (
        {**sizes(128256, 4096, 14336, 32, 32, 8), "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
        | {"attention_bias": False, "mlp_bias": False, "max_position_embeddings": 131072}
        | {"rope_scaling": {**LLAMA3, "rope_type": "llama3"}, "eos_token_id": [128001, 128008, 128009]},
        LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, rope=Rope(500000.0, "llama3", 8.0, 8192, 1.0, 4.0)),
    ),
    "Llama 3.2 1B": (
        {**sizes(128256, 2048, 8192, 16, 32, 8), "model_type": "llama", "rms_norm_eps": 1e-5, "head_dim": 64}
        | {"rope_parameters": {**LLAMA3, "factor": 32.0, "rope_type": "llama3", "rope_theta": 500000.0}}
        | {"tie_word_embeddings": True, "max_position_embeddings": 131072},
        LlamaConfig(128256, 2048, 8192, 16, 32, 8, 64, rope=Rope(500000.0, "llama3", 32.0, 8192, 1.0, 4.0), tied=True),
    ),
    "Mistral 7B": (
        {**sizes(32000, 4096, 14336, 32, 32, 8), "model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
        | {"sliding_window": 4096, "max_position_embeddings": 32768},
        LlamaConfig(32000, 4096, 14336, 32, 32, 8, 128, window=4096),
    ),
    "Mistral 7B v0.3": (
        {**sizes(32768, 4096, 14336, 32, 32, 8), "model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 1e6}
        | {"sliding_window": None, "head_dim": None, "max_position_embeddings": 32768},
        LlamaConfig(32768, 4096, 14336, 32, 32, 8, 128, rope=Rope(1e6)),
    ),
    "Qwen2.5 0.5B": (
        {**sizes(151936, 896, 4864, 24, 14, 2), "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6}
        | {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 24}
        | {"layer_types": ["full_attention"] * 24, "tie_word_embeddings": True},
        LlamaConfig(151936, 896, 4864, 24, 14, 2, 64, 1e-6, Rope(1e6), biases=QKV, tied=True),
    ),
}


@pytest.fixture
def write(tmp_path):
    """Writes `PLAIN` with these fields, None removes one; returns the file."""

    def write(**fields):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({name: x for name, x in {**PLAIN, **fields}.items() if x is not None}))
        return path

    return write


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read(name, tmp_path):
    raw, wanted = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path) == wanted


def test_fields_that_old_files_lack_have_their_defaults(write):
    config = read_config(write().parent)
    assert config == LlamaConfig(400, 32, 64, 2, 4, 4, 8)


@pytest.mark.parametrize(
    "fields, rope",
    [
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}, Rope(7e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rope(1e4, "linear", 2.0)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 99},
            Rope(5e5, "dynamic", 4.0, 99),
        ),
        (
            {"rope_scaling": {**LLAMA3, "rope_type": "llama3", "original_max_position_embeddings": None}}
            | {"max_position_embeddings": 99},
            Rope(1e4, "llama3", 8.0, 99, 1.0, 4.0),
        ),
    ],
    ids=str,
)
def test_rope_is_found_where_transformers_4_and_5_put_it(write, fields, rope):
    assert read_config(write(**fields).parent).rope == rope


@pytest.mark.parametrize(
    "fields, biases",
    [({"attention_bias": True}, ATTENTION), ({"mlp_bias": True}, MLP), ({"model_type": "qwen2"}, QKV)],
    ids=str,
)
def test_biases_follow_from_the_kind_and_its_fields(write, fields, biases):
    assert read_config(write(num_key_value_heads=2, **fields).parent).biases == biases


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied": True, "rms_epsilon": 1e-6, "head_dim": 24},
        {"rope": Rope(5e5, "linear", 2.0)},
        {"rope": Rope(5e5, "dynamic", 2.0, 64)},
        {"rope": Rope(5e5, "llama3", 8.0, 64, 1.0, 4.0)},
        {"window": 16},
        {"biases": QKV, "rope": Rope(1e6)},
        {"biases": ATTENTION},
        {"biases": MLP},
        {"biases": ATTENTION + MLP},
    ],
    ids=str,
)
def test_what_is_written_is_read(fields, tmp_path):
    config = LlamaConfig(**{**dict(vocab=9, embed=32, mlp=64, layers=2, heads=4, kv_heads=2, head_dim=8), **fields})
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert read_config(tmp_path) == config


def test_biases_that_no_model_type_has_are_not_written():
    with pytest.raises(ValueError, match="^biases of v_proj alone"):
        to_json(LlamaConfig(9, 32, 64, 2, 4, 2, 8, biases=("v_proj",)))


def test_directory_without_config_is_refused(tmp_path, refused):
    message = f"config.base: no {tmp_path}/config.json; give the directory of a Hugging Face LLaMA"
    assert message in refused(lambda: read_config(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"\x00", b"\xff\xfe", b"[]", b"null", b'"llama"', b"[" * 100_000])
def test_broken_config_is_refused(write, content, refused):
    path = write()
    path.write_bytes(content)
    assert f"{path} is not a JSON object; download it again" in refused(lambda: read_config(path.parent))


@pytest.mark.parametrize("field", [name for name in PLAIN if name != "model_type"])
def test_config_without_a_field_is_refused(write, field, refused):
    path = write(**{field: None})
    assert f"{path} has no field '{field}'; it is not the config.json of a LLaMA" in refused(
        lambda: read_config(path.parent)
    )


def test_scaling_without_its_factor_is_refused(write, refused):
    path = write(rope_scaling={"type": "linear"})
    assert f"{path} has no field 'factor'" in refused(lambda: read_config(path.parent))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": [32]}, "a size is no number or impossible"),
        ({"num_attention_heads": "many"}, "a size is no number or impossible"),
        ({"num_attention_heads": 0}, "a size is no number or impossible"),
        ({"vocab_size": float("inf")}, "a size is no number or impossible"),
        ({"intermediate_size": float("nan")}, "a size is no number or impossible"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "a size is no number or impossible",
        ),  # of unknown context
        ({"num_hidden_layers": 0}, "a size is no number or impossible"),
        ({"num_hidden_layers": -2}, "a size is no number or impossible"),
        ({"num_hidden_layers": 10**8}, "a size is no number or impossible"),
        ({"rms_norm_eps": float("nan")}, "a size is no number or impossible"),
        ({"rope_theta": -5.0}, "a size is no number or impossible"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "a size is no number or impossible"),
        (
            {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": -3},
            "a size is no number or impossible",
        ),
        ({"vocab_size": 0}, "a size is no number or impossible"),
        ({"head_dim": 7}, "a size is no number or impossible"),  # rotary angles come in pairs
        ({"rope_parameters": 3}, "rope_parameters is not an object"),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3 key-value heads"),
    ],
    ids=str,
)
def test_config_with_an_impossible_field_is_refused(write, fields, message, refused):
    path = write(**fields)
    line = refused(lambda: read_config(path.parent))
    assert f"{path}: {message}" in line and "download it again" in line


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = ['full_attention'"),
        ({"layer_types": [{}, {"a": 1}]}, "layer_types = [{}, {'a': 1}]"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window = True"),
    ],
    ids=str,
)
def test_model_that_is_not_computed_is_refused(write, fields, named, refused):
    path = write(**fields)
    line = refused(lambda: read_config(path.parent))
    assert f"{path}: {named}" in line and "is not supported" in line


@pytest.mark.parametrize("kind", ["gemma", "mixtral", "qwen3", 3, ["llama"], {}, None])
def test_model_of_another_type_is_refused(write, kind, refused):
    path = write(model_type=kind)
    assert f"{path}: model_type = {kind!r} is not supported; known are llama, mistral, qwen2" in refused(
        lambda: read_config(path.parent)
    )


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"type": "longrope", "short_factor": [1.0]},
        {"rope_type": "proportional"},
        {"rope_type": ["llama3"]},
        {"rope_type": "default", "partial_rotary_factor": 0.25},
        {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}},
    ],
    ids=str,
)
def test_rope_that_is_not_computed_is_refused(write, field, rope, refused):
    path = write(**{field: rope})
    assert f"{path}: {field} = {rope!r} is not supported; known are default, linear, dynamic and llama3" in refused(
        lambda: read_config(path.parent)
    )


@pytest.mark.parametrize(
    "config, generation, wanted",
    [(2, None, {2}), ([2, 5], 7, {2, 5, 7}), (None, [7], {7}), (None, None, set())],
)
def test_texts_end_at_the_tokens_of_either_file(write, config, generation, wanted):
    folder = write(eos_token_id=config).parent
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert stop_tokens(folder) == wanted


@pytest.mark.parametrize("wrong", ["x", {"a": 1}, [2, "x"]])
def test_a_stop_token_that_is_no_number_is_refused(write, wrong, refused):
    path = write(eos_token_id=wrong)
    line = refused(lambda: stop_tokens(path.parent))
    assert f"{path}: eos_token_id = " in line and "is no number; download it again" in line
