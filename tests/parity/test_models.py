"""Random models that transformers made and saved, loaded by their config.json alone: the same logits in float32."""

import functools
import json

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

import torch  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402

from jaxlora.interop import huggingface  # noqa: E402
from jaxlora.interop.llama_config import read_config  # noqa: E402
from jaxlora.models.llama import Llama  # noqa: E402
from jaxlora.train.mesh import make_mesh, shardings  # noqa: E402

pytestmark = pytest.mark.parity

LENGTHS = (5, 13, 24)  # ascending: see `alone`
NOTES = [np.random.default_rng(n).integers(1, 64, n) for n in LENGTHS]
TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    tie_word_embeddings=False,
)
# With head_dim 16 the wavelengths are 6, 32, 167, ... positions: one below 64/4 is kept, one up to 64 is interpolated,
# the others are divided.
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3["original_max_position_embeddings"] = 64
# Each family: the fields that make it, and what they would be where they had no effect.
FAMILIES = {
    "llama 1": ("Llama", dict(num_key_value_heads=4), dict(rope_parameters=dict(rope_theta=1e2))),
    "llama 2": ("Llama", dict(rms_norm_eps=1e-5), dict(rms_norm_eps=1e-1)),
    "llama 3": ("Llama", dict(rope_parameters=dict(rope_theta=5e5)), dict(rope_parameters=dict(rope_theta=1e4))),
    "llama 3.1": (
        "Llama",
        dict(head_dim=16, max_position_embeddings=512, rope_parameters=dict(**LLAMA3, factor=8.0)),
        dict(rope_parameters=dict(rope_theta=5e5)),
    ),
    "llama 3.2": (
        "Llama",
        dict(head_dim=16, tie_word_embeddings=True, rope_parameters=dict(**LLAMA3, factor=32.0)),
        dict(rope_parameters=dict(**LLAMA3, factor=8.0)),
    ),
    "linear": (
        "Llama",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)),
        dict(rope_parameters=dict(rope_theta=1e4)),
    ),
    "dynamic": (
        "Llama",
        dict(max_position_embeddings=8, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)),
        dict(rope_parameters=dict(rope_theta=1e4)),
    ),
    "mistral": ("Mistral", dict(sliding_window=None), dict(sliding_window=6)),
    "mistral, window": ("Mistral", dict(sliding_window=6), dict(sliding_window=7)),
    "qwen2": ("Qwen2", dict(rope_parameters=dict(rope_theta=1e6)), dict(rope_parameters=dict(rope_theta=1e5))),
    "qwen2, tied": ("Qwen2", dict(tie_word_embeddings=True, num_key_value_heads=1), dict(rms_norm_eps=1e-1)),
    "attention biases": ("Llama", dict(attention_bias=True), dict(attention_bias=False)),
    "all biases": ("Llama", dict(attention_bias=True, mlp_bias=True), dict(mlp_bias=False)),
    "wide heads": ("Llama", dict(head_dim=24, num_key_value_heads=1), dict(rope_parameters=dict(rope_theta=1e2))),
}


def make(family, spread=0.3, task="CausalLM", **changes):
    """The random model of a family; transformers starts biases from 0 and norms from 1, these are random too."""
    name, fields, _ = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**TINY, **fields, "initializer_range": spread, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}For{task}")(config).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path.endswith("bias"):
                weight.normal_(0.0, 0.5)
            elif "norm" in path:
                weight.normal_(1.0, 0.2)
    return model


def write_config(folder, raw, **changes):
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def load(folder, labels=0):
    """(definition, state) of a directory, the head with it where there are labels."""
    shape = read_config(folder)
    abstract = nnx.eval_shape(lambda: Llama(shape, labels=labels, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    return definition, huggingface.load_base(folder, abstract, shardings(make_mesh(1, 1), state))


@functools.partial(jax.jit, static_argnums=0)
def run(definition, state, tokens, segments, positions):
    """Logits of all positions, or of the notes where the model has a head."""
    model = nnx.merge(definition, state)
    hidden = model(tokens, segments, positions)
    return model.head(hidden, segments, 3) if hasattr(model, "head") else model.logits(hidden)


def arrange(layout):
    """(tokens, segments, positions, where each note lies) of the notes, padded on a side or packed into one row."""
    tokens, segments, positions = np.zeros((3, len(NOTES), sum(LENGTHS)), np.int32)
    where = []
    for i, ids in enumerate(NOTES):
        start = {"left": tokens.shape[1] - len(ids), "right": 0, "packed": sum(LENGTHS[:i])}[layout]
        here = (0 if layout == "packed" else i), slice(start, start + len(ids))
        tokens[here], segments[here], positions[here] = ids, i + 1 if layout == "packed" else 1, np.arange(len(ids))
        where.append(here)
    return tokens, segments, positions, where


def alone(theirs):
    """Logits of each note by itself, the shortest first: a transformers model stretches dynamic angles by the longest
    note that it has seen."""
    with torch.no_grad():
        return [theirs(torch.tensor(ids)[None]).logits[0].numpy() for ids in NOTES]


def in_batch(theirs, layout):
    """Logits of all positions of the padded batch."""
    tokens, segments, positions = (torch.tensor(x) for x in arrange(layout)[:3])
    with torch.no_grad():
        return theirs(tokens.long(), attention_mask=segments, position_ids=positions.long()).logits.numpy()


def assert_same_logits(theirs, folder, atol=2e-4):
    """That the model and its directory give the same in every arrangement of the notes."""
    definition, state = load(folder)
    dynamic, single = theirs.config.rope_parameters["rope_type"] == "dynamic", alone(theirs)
    for layout in ("left", "right", "packed"):
        *batch, where = arrange(layout)
        found = np.asarray(run(definition, state, *batch))
        wanted = single
        if layout != "packed" and not dynamic:  # a dynamic note is stretched by its own length here
            logits = in_batch(theirs, layout)
            wanted = [logits[here] for here in where]
        for here, expected in zip(where, wanted, strict=True):
            np.testing.assert_allclose(found[here], expected, atol=atol, rtol=0, err_msg=layout)


@pytest.mark.parametrize("spread, atol", [(0.02, 2e-6), (0.3, 2e-4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, spread, atol, tmp_path):
    theirs = make(family, spread)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(theirs, tmp_path, atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_makes_a_family_matters_to_its_logits(family):
    theirs = make(family)
    other = make(family, **FAMILIES[family][2])
    other.load_state_dict(theirs.state_dict(), strict=False)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(alone(theirs), alone(other), strict=True))
    assert difference > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama 3.1", "qwen2"])
def test_half_precision_weights_are_those_of_their_upcast(family, dtype, tmp_path):
    make(family).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    # Read anew: `.to` has rounded the rotary frequencies too, which no file holds.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("family", ["llama 2", "qwen2, tied"])
def test_sharded_files_are_read(family, tmp_path):
    theirs = make(family)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values())) > 2
    assert_same_logits(theirs, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_the_rope_are_the_same_model(family, tmp_path):
    make(family).config.save_pretrained(tmp_path)
    written, raw = read_config(tmp_path), json.loads((tmp_path / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    old = {name: value for name, value in rope.items() if name not in ("rope_type", "rope_theta")}
    for kind in ("type", "rope_type"):
        scaling = {kind: rope["rope_type"], **old} if rope["rope_type"] != "default" else None
        write_config(tmp_path, raw, rope_theta=rope["rope_theta"], rope_scaling=scaling)
        assert read_config(tmp_path) == written
        theirs = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
        assert {name: theirs[name] for name in rope} == rope


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sliding_window": None, "head_dim": None},
        {"rope_theta": 3e5, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 7e5},
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        {"rope_theta": 3e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e5}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_fields_left_out_or_given_twice_are_read_as_transformers_reads_them(kind, fields, tmp_path):
    sizes = dict(vocab_size=64, hidden_size=128, intermediate_size=48, num_hidden_layers=2, num_attention_heads=32)
    write_config(tmp_path, sizes, model_type=kind, rms_norm_eps=1e-6, **fields)
    ours, theirs = read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 4)
    assert ours.window == (getattr(theirs, "sliding_window", None) or 0)
    assert ours.tied == theirs.tie_word_embeddings
    rope = theirs.rope_parameters
    assert (ours.rope.theta, ours.rope.kind) == (rope["rope_theta"], rope["rope_type"])
    assert ours.rope.factor == rope.get("factor", 1.0)


@pytest.mark.parametrize(
    "family", ["llama 1", "llama 3.2", "linear", "dynamic", "mistral, window", "qwen2", "all biases"]
)
def test_what_is_written_is_what_transformers_reads(family, tmp_path):
    theirs = make(family)
    theirs.save_pretrained(tmp_path / "theirs")
    huggingface.save(tmp_path / "ours", nnx.merge(*load(tmp_path / "theirs")))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(theirs)
    for found, wanted in zip(alone(again), alone(theirs), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("family", ["llama 2", "llama 3.2", "mistral, window", "qwen2"])
def test_classifier_is_that_of_transformers(family, tmp_path):
    theirs = make(family, task="SequenceClassification", num_labels=3)
    theirs.save_pretrained(tmp_path)
    definition, state = load(tmp_path, labels=3)
    with torch.no_grad():
        single = np.stack([theirs(torch.tensor(ids)[None]).logits[0].numpy() for ids in NOTES])
    for layout in ("left", "right", "packed"):
        *batch, _ = arrange(layout)
        found = np.asarray(run(definition, state, *batch))
        wanted = single if layout == "packed" else in_batch(theirs, layout)
        found = found[0] if layout == "packed" else found[:, 0]
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=0, err_msg=layout)
