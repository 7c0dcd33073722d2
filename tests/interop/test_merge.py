"""Adapters merged into their base: the model's own numbers, and a directory in which nothing else has changed."""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlora.interop import tensors
from jaxlora.interop.llama_config import read_config, read_json
from jaxlora.interop.merge import TOKENIZER_FILES, merged, merged_bias, write_merged
from jaxlora.interop.peft import from_parameters
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.lora_spec import MODULES, LoraSpec, module_name

LORA = LoraSpec(3, 6.0, targets=("q_proj", "v_proj", "down_proj"))
DORA = LoraSpec(2, 1.5, targets=("all-linear",), layers=(1,), rslora=True, dora=True)
OTHER_DORA = LoraSpec(2, 3.0, targets=("v_proj", "down_proj", "o_proj"), dora=True, ranks=(("o_proj", 4),))
MIXTURES = {
    "LoRA": [LORA],
    "DoRA": [OTHER_DORA],
    "LoRA and LoRA": [LORA, LoraSpec(1, 2.0, targets=("v_proj",))],
    "LoRA and DoRA": [LORA, DORA],
    "DoRA and DoRA": [DORA, OTHER_DORA],
    "all three": [LORA, DORA, OTHER_DORA],
    "PiSSA and DoRA": [LoraSpec(2, 4.0, init="pissa"), OTHER_DORA],
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_merged_weights_compute_what_the_adapters_do(mixture, random_llama, random_adapter, adapted_logits):
    model = random_llama(layers=2, biases=("q_proj", "k_proj", "v_proj"))
    adapters = {f"n{i}": random_adapter(model.config, spec, seed=i) for i, spec in enumerate(MIXTURES[mixture])}
    wanted, plain = adapted_logits(model, adapters), adapted_logits(model, {})
    for name in MODULES:
        linear = getattr(model.blocks, name)
        kernel = np.array(linear.kernel[...])
        for layer in range(2):
            module = module_name(name, layer)
            here = [adapter for adapter in adapters.values() if module in adapter.weights]
            kernel[layer] = merged(kernel[layer].T, here, module).T
        linear.kernel[...] = kernel
    np.testing.assert_allclose(adapted_logits(model, {}), wanted, atol=1e-4, rtol=0)
    assert np.abs(plain - wanted).max() > 0.1


def test_merged_vectors_and_triplets_compute_what_the_model_with_them_does(random_llama):
    """(IA)^3s on layers with biases, and a DoRA and an AdaLoRA on some of these layers."""
    specs = {
        "one": Ia3Spec(),
        "two": Ia3Spec(("v_proj", "up_proj"), ("up_proj",)),
        "dora": OTHER_DORA,
        "ada": AdaLoraSpec(4, 8.0, targets=("v_proj", "down_proj"), target_rank=2),
    }
    model = random_llama(specs, layers=2, biases=("q_proj", "k_proj", "v_proj"))
    model.blocks.v_proj.adapters["ada"].e[1, :3] = 0.0
    model.blocks.down_proj.adapters["ada"].e[0] = 0.0
    values = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    adapters = {name: from_parameters(values, name, spec, {}) for name, spec in specs.items()}
    ranks = {module: adapters["ada"].factors(module)[0].shape[1] for module in adapters["ada"].weights}
    assert ranks == {module_name("v_proj", 0): 4, module_name("v_proj", 1): 1} | {
        module_name("down_proj", 0): 1,  # there is none of rank 0
        module_name("down_proj", 1): 4,
    }
    tokens = np.random.default_rng(0).integers(0, model.config.vocab, (2, 12))
    row = tokens, np.ones_like(tokens), np.tile(np.arange(12), (2, 1))

    definition = nnx.graphdef(model)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(state, active):
        model = nnx.merge(definition, state)
        return model.logits(model(*row, active))

    wanted, plain = logits(nnx.state(model), tuple(specs)), logits(nnx.state(model), ())
    for name in MODULES:
        linear = getattr(model.blocks, name)
        for layer in range(2):
            module = module_name(name, layer)
            here = [adapter for adapter in adapters.values() if module in adapter.weights]
            linear.kernel[layer] = merged(np.asarray(linear.kernel[layer]).T, here, module).T
            if hasattr(linear, "bias"):
                linear.bias[layer] = merged_bias(np.asarray(linear.bias[layer]), here, module)
    np.testing.assert_allclose(logits(nnx.state(model), ()), wanted, atol=1e-4, rtol=0)
    assert np.abs(plain - wanted).max() > 0.1


def test_nothing_merged_changes_no_bit(random_llama):
    kernel = np.array(random_llama().blocks.q_proj.kernel[0].T)
    np.testing.assert_array_equal(merged(kernel, [], module_name("q_proj", 0)), kernel)


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def stored(request, base):
    """A base whose weights are stored as that, but for its norms; gives its dtype."""
    dtype = np.dtype(getattr(ml_dtypes, request.param, None) or request.param)
    values = load_file(base / "model.safetensors")
    save_file({n: x if "norm" in n else x.astype(dtype) for n, x in values.items()}, base / "model.safetensors")
    return dtype


def write(folder, base, adapters, head=None, kind="lm", labels=(), pad=2):
    folder.mkdir()
    write_merged(folder, base, adapters, head, kind, labels, pad)
    return {name: source.read(name) for source in [tensors.model_files(folder)] for name in source.names}


def test_only_targeted_weights_change_and_are_cast_once(stored, base, random_adapter, tmp_path):
    adapters = [random_adapter(read_config(base), spec, seed=i) for i, spec in enumerate((LORA, DORA))]
    found, before = write(tmp_path / "merged", base, adapters), load_file(base / "model.safetensors")
    assert list(found) == sorted(before)
    for name, old in before.items():
        module = name.removesuffix(".weight")
        here = [adapter for adapter in adapters if module in adapter.weights]
        wanted = merged(old.astype(np.float32), here, module).astype(old.dtype) if here else old
        assert found[name].dtype == old.dtype
        np.testing.assert_array_equal(found[name], wanted)
        assert bool(here) == bool(np.any(found[name] != old))


def test_a_directory_is_complete_and_its_config_that_of_the_base(base, random_adapter, tmp_path):
    (base / "generation_config.json").write_text("{}")
    (base / "README.md").write_text("of the base")
    write(tmp_path / "merged", base, [random_adapter(read_config(base), LORA)])
    assert read_json(tmp_path / "merged") == read_json(base)
    kept = {name for name in TOKENIZER_FILES if (base / name).exists()}
    assert kept
    written = {path.name for path in (tmp_path / "merged").iterdir()}
    assert written == kept | {"config.json", "generation_config.json", "model.safetensors"}
    for name in kept:
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_head_makes_it_a_classifier(kind, stored, base, edit_config, edit_tensors, random_adapter, tmp_path):
    edit_config(tie_word_embeddings=False)
    edit_tensors(lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    (base / "generation_config.json").write_text("{}")
    adapter = random_adapter(read_config(base), LORA, labels=3)
    found = write(tmp_path / "merged", base, [adapter], adapter.head, kind, ("good", "fair", "poor"))
    assert "lm_head.weight" not in found and not (tmp_path / "merged" / "generation_config.json").exists()
    np.testing.assert_array_equal(found["score.weight"], adapter.head.T.astype(stored))
    raw = read_json(tmp_path / "merged")
    assert raw["architectures"] == ["LlamaForSequenceClassification"] and raw["pad_token_id"] == 2
    assert raw["id2label"] == {"0": "good", "1": "fair", "2": "poor"}
    assert raw["label2id"] == {"good": 0, "fair": 1, "poor": 2}
    assert raw["problem_type"].startswith("multi_label" if kind == "multilabel" else "single_label")
    assert read_config(tmp_path / "merged") == read_config(base)


def test_a_padding_token_of_the_base_stays(base, edit_config, random_adapter, tmp_path):
    edit_config(pad_token_id=0)
    adapter = random_adapter(read_config(base), LORA, labels=1)
    write(tmp_path / "merged", base, [adapter], adapter.head, "binary", ("yes",))
    assert read_json(tmp_path / "merged")["pad_token_id"] == 0


def test_shards_hold_what_one_file_does(base, random_adapter, tmp_path, monkeypatch):
    adapters = [random_adapter(read_config(base), LORA)]
    whole = write(tmp_path / "whole", base, adapters)
    monkeypatch.setattr(tensors.write_sharded, "__defaults__", (20_000,))
    sharded = write(tmp_path / "sharded", base, adapters)
    index = json.loads((tmp_path / "sharded" / tensors.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    assert list(sharded) == list(whole)
    assert all(np.array_equal(sharded[name], whole[name]) for name in whole)
    again = write(tmp_path / "again", tmp_path / "sharded", [])  # it is a base in turn
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_old_frequencies_in_a_base_are_copied(base, edit_tensors, random_adapter, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(lambda t: {**t, name: np.ones(4, np.float32)})
    assert name in write(tmp_path / "merged", base, [random_adapter(read_config(base), LORA)])


def test_a_merged_model_is_that_of_the_directory(base, load, random_adapter, adapted_logits, random_llama, tmp_path):
    """The run's logits are those of the written model, read as any base is."""
    shape = read_config(base)
    adapters = {"clinical": random_adapter(shape, LORA), "downstream": random_adapter(shape, DORA, seed=1)}
    write(tmp_path / "merged", base, list(adapters.values()))

    def logits(folder, adapters):
        fields = {field: getattr(shape, field) for field in ("vocab", "embed", "mlp", "layers", "head_dim", "tied")}
        model = random_llama(**fields)
        leaves = [(path, nnx.Param(value)) for path, value in load(folder).items()]
        nnx.update(model, nnx.from_flat_state(leaves))
        return adapted_logits(model, adapters)

    np.testing.assert_allclose(logits(tmp_path / "merged", {}), logits(base, adapters), atol=1e-5, rtol=0)
