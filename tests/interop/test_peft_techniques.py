"""Directories of the techniques beside LoRA: in and out the same bytes, and what cannot be represented is one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlora import exchange
from jaxlora.data.tokens import Tokenizer
from jaxlora.interop import huggingface, peft
from jaxlora.interop.llama_config import read_config
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.ia3 import Ia3Spec
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec, PTuningSpec
from jaxlora.models.techniques import described
from jaxlora.train import run_config
from jaxlora.train.belonging import belongs_to

FILES = ("adapter_config.json", "adapter_model.safetensors", "jaxlora.json")
# What is trained, and what its directory is.
SPECS = {
    "prefix": (PrefixSpec(3), PrefixSpec(3)),
    "prefix, projection": (PrefixSpec(3, projection=True, hidden=5), PrefixSpec(3)),
    "prompt": (PromptSpec(3, init="text"), PromptSpec(3)),
    "p-tuning": (PTuningSpec(3, encoder="mlp", hidden=5), PromptSpec(3)),
    "adaptation prompt": (AdaptationPromptSpec(4, 1), AdaptationPromptSpec(4, 1)),
    "adalora": (AdaLoraSpec(4, 6.0, target_rank=2, start=3, dropout=0.1),) * 2,
    "ia3": (Ia3Spec(),) * 2,
    "ia3, some": (
        Ia3Spec((r".*1\.self_attn\.v_proj", "up_proj"), ("up_proj",)),
        Ia3Spec(
            ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj"),
            ("up_proj",),
        ),
    ),
}
TYPES = {
    "prefix": "PREFIX_TUNING",
    "prefix, projection": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "p-tuning": "PROMPT_TUNING",
    "adaptation prompt": "ADAPTION_PROMPT",
    "adalora": "ADALORA",
    "ia3": "IA3",
    "ia3, some": "IA3",
}


@pytest.fixture(scope="module")
def shape(small_base):
    return read_config(small_base)


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def edit_config(folder, **fields):
    path = folder / "adapter_config.json"
    raw = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value != "missing"}))


@pytest.mark.parametrize("name, labels", [*((name, 0) for name in SPECS), ("p-tuning", 3), ("adalora", 3), ("ia3", 3)])
def test_exported_imported_and_exported_are_the_same_bytes(name, labels, shape, small_base, random_adapter, tmp_path):
    trained, spec = SPECS[name]
    belongs = {"base": huggingface.fingerprint(small_base), "tokenizer": Tokenizer(small_base).fingerprint}
    belongs |= {"kind": "multilabel", "labels": [f"label {i}" for i in range(labels)]} if labels else {}
    first, second = tmp_path / "first", tmp_path / "second"
    adapter = random_adapter(shape, trained, labels, belongs=belongs)
    peft.write(first, adapter, small_base.name)
    line = exchange.import_adapter(str(first), str(small_base), "downstream", str(tmp_path / "run"))
    assert line == f"config.adapters.downstream = {described(spec, workdir=str(tmp_path / 'run'))}"
    told = exchange.export_adapter(str(tmp_path / "run"), str(second))
    assert told.startswith("downstream: ") and ("a head of 3 labels" in told) == bool(labels)
    assert bytes_of(second) == bytes_of(first)
    assert json.loads((first / "adapter_config.json").read_text())["peft_type"] == TYPES[name]
    read = peft.read(second, shape)
    assert read.spec == spec
    for module, here in adapter.weights.items():
        for leaf, value in here.items():
            np.testing.assert_array_equal(read.weights[module][leaf], value)


@pytest.mark.parametrize(
    ("name", "fields", "made_by"),
    [
        ("prefix", {"prefix_projection": True}, "a projection"),
        ("prompt", {"peft_type": "P_TUNING", "encoder_hidden_size": 9}, "the encoder of P-tuning"),
    ],
)
def test_tokens_without_their_network_are_said_to_be(
    name, fields, made_by, shape, small_base, random_adapter, tmp_path
):
    peft.write(tmp_path / "a", random_adapter(shape, SPECS[name][0]), "base")
    edit_config(tmp_path / "a", **fields)
    line = exchange.import_adapter(str(tmp_path / "a"), str(small_base), "clinical", str(tmp_path / "run"))
    assert f"= {name}(virtual_tokens=3, workdir=" in line
    assert line.endswith(f")  # what {made_by} made, which PEFT does not save")


def test_triplets_that_peft_left_out_are_zero_and_the_scale_stays(shape, random_adapter, tmp_path):
    """One layer without any, and one with two of four."""
    adapter = random_adapter(shape, AdaLoraSpec(4, 6.0, target_rank=2))
    peft.write(tmp_path, adapter, "base")
    kept = {module: [True] * 4 for module in adapter.weights}
    first, second = list(kept)[:2]
    kept[first], kept[second] = [False] * 4, [False, True, True, False]
    edit_config(tmp_path, rank_pattern={f"{module}.lora_E": x for module, x in kept.items()})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, value in tensors.items():
        mask = np.asarray(kept[name.removeprefix("base_model.model.").rpartition(".")[0]])
        tensors[name] = np.ascontiguousarray(value[:, mask] if name.endswith("lora_B") else value[mask])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    found = peft.read(tmp_path, shape)
    assert found.spec == adapter.spec and not np.any(found.weights[first]["b"])
    for module, here in adapter.weights.items():
        wanted = (here["a"] * here["e"] * kept[module]) @ here["b"]
        a, b = found.factors(module)
        np.testing.assert_allclose(a @ b, wanted, atol=1e-5)
        assert found.size(module).scale == pytest.approx(6 / (4 + 1e-5))
    assert peft.to_parameters(found, "clinical")["blocks", "q_proj", "adapters", "clinical", "a"].shape == (2, 32, 4)


REFUSED = {
    "another base": ("prefix", {"num_layers": 3}, "num_layers = 3, the base makes it 2; give the base it was made for"),
    "other heads": ("prefix", {"num_attention_heads": 4}, "num_attention_heads = 4, the base makes it 2"),
    "encoder and decoder": ("prompt", {"num_transformer_submodules": 2}, "num_transformer_submodules = 2"),
    "no tokens": ("prompt", {"num_virtual_tokens": 0}, "virtual_tokens is 0; it must be 1 or more"),
    "tokens are a word": ("prompt", {"num_virtual_tokens": "3"}, "a field is not of its type"),
    "countless tokens": ("prefix", {"num_virtual_tokens": 10**12}, "tensor 'prompt_embeddings' is [3, 64]"),
    "more than a machine can count": ("prompt", {"num_virtual_tokens": 10**30}, "a field is not of its type"),
    "countless triplets": ("adalora", {"init_r": 10**12}, "lora_A' is [4, 32]"),
    "an endless alpha": ("adalora", {"lora_alpha": 1e999}, "a field is not of its type"),
    "tokens missing": ("prefix", {"num_virtual_tokens": "missing"}, "no field 'num_virtual_tokens'; it is not the con"),
    "more tokens": ("prefix", {"num_virtual_tokens": 4}, "tensor 'prompt_embeddings' is [3, 64]"),
    "unknown": ("prompt", {"use_tomorrow": 1}, "use_tomorrow = 1 cannot be represented"),
    "other modules": ("adaptation prompt", {"target_modules": "mlp"}, "target_modules = 'mlp' cannot be represented"),
    "too many layers": ("adaptation prompt", {"adapter_layers": 3}, "layers is 3; the base has 2"),
    "rsLoRA": ("adalora", {"use_rslora": True}, "use_rslora = True cannot be represented"),
    "alphas": ("adalora", {"alpha_pattern": {"q_proj": 2}}, "alpha_pattern = {'q_proj': 2} cannot be represented"),
    "short pattern": (
        "adalora",
        {"rank_pattern": {f"model.layers.{i}.self_attn.{x}_proj.lora_E": [True] for i in (0, 1) for x in "qv"}},
        "a field is not of its type",
    ),
    "no budget": ("adalora", {"target_r": 4}, "target_rank is 4; it must be from 1 to 3"),
    "two sides": (
        "ia3",
        {"feedforward_modules": ["1.self_attn.k_proj"]},
        "feedforward_modules = ['1.self_attn.k_proj'] cannot be represented",
    ),
    "no targets": ("ia3", {"target_modules": None}, "matches no layer of the base"),
    "no such type": ("prompt", {"peft_type": "VERA"}, "peft_type = 'VERA' is not supported; known are LORA, ADALORA"),
    "another task": ("prompt", {"task_type": "SEQ_2_SEQ_LM"}, "task_type = 'SEQ_2_SEQ_LM' is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(case, shape, random_adapter, tmp_path, refused):
    name, fields, part = REFUSED[case]
    peft.write(tmp_path, random_adapter(shape, SPECS[name][0]), "base")
    edit_config(tmp_path, **fields)
    line = refused(lambda: peft.read(tmp_path, shape))
    assert str(tmp_path) in line and part in line


@pytest.fixture(scope="module")
def run_of(shape, small_base, random_adapter, tmp_path_factory):
    """A run of two adapters with a head, without any training: `run_of(name, active)`."""

    def make(name, active=("clinical", "downstream")):
        from jaxlora.config import adapter, default
        from jaxlora.models.techniques import spec_json
        from jaxlora.train import checkpoint

        workdir, config = tmp_path_factory.mktemp("run"), default()
        specs = {"clinical": SPECS[name][0], "downstream": LoraSpec(2, 4.0)}
        values = {}
        for key, spec in specs.items():
            values |= peft.to_parameters(random_adapter(shape, spec, 3), key)
        config.base, config.select, config.active = str(small_base), "last", active
        config.adapters.clinical = {**spec_json(specs["clinical"]), "workdir": ""}
        config.adapters.downstream = adapter(2, 4.0)
        run_config.write(str(workdir), config)
        belongs = belongs_to(str(small_base), Tokenizer(small_base))
        metadata = {**belongs, "adapters": {key: spec_json(spec) for key, spec in specs.items()}}
        metadata |= {"kind": "multiclass", "labels": ["a", "b", "c"], "training set": "none"}
        checkpoints = checkpoint.Checkpoints(str(workdir))
        checkpoints.save(0, state_of(values), {}, {}, 0.0, metadata)
        checkpoints.close()
        return workdir

    return make


def state_of(values):
    import jax.numpy as jnp
    from flax import nnx

    return nnx.from_flat_state([(path, nnx.Param(jnp.asarray(value))) for path, value in sorted(values.items())])


@pytest.mark.parametrize("name", ["prefix", "adaptation prompt", "ia3", "adalora"])
def test_loras_alone_are_combined_and_the_others_go_one_by_one(name, run_of, tmp_path, refused):
    workdir, out = str(run_of(name)), str(tmp_path / "out")
    if name == "adalora":
        assert exchange.export_adapter(workdir, out).startswith("clinical + downstream: rank 6, a head of 3 labels")
        return
    way = "or take export-model" if name == "ia3" else "export them one by one, as with --adapters=clinical"
    line = refused(lambda: exchange.export_adapter(workdir, out))
    assert "--adapters: clinical is of technique" in line and str(way) in line
    assert "LoRAs alone are combined" in refused(
        lambda: exchange.export_adapter(workdir, out, ["clinical"], weights=(0.5,))
    )
    assert not (tmp_path / "out").exists()
    assert exchange.export_adapter(workdir, out, ["clinical"]).startswith("clinical: ")
    if name != "ia3":
        line = refused(lambda: exchange.export_model(workdir, str(tmp_path / "model")))
        assert (
            "'clinical' of" in line
            and "which changes no weight to merge it into; take export-adapter, or `evaluate`, `predict` and `generate`"
            in line
        )


def test_a_head_that_peft_does_not_save_is_left_out_and_said_to_be(run_of, tmp_path):
    workdir = str(run_of("adaptation prompt", ("clinical",)))
    told = exchange.export_adapter(workdir, str(tmp_path / "out"))
    assert told == "clinical: adaptation_prompt(length=4, layers=1), without the head, which PEFT does not save with it"
    assert not any("score" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert set(json.loads((tmp_path / "out" / "jaxlora.json").read_text())) == {"base", "tokenizer"}


def test_a_base_that_was_moved_is_given(run_of, small_base, tmp_path, refused):
    workdir = run_of("prefix", ("clinical",))
    raw = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**raw, "base": "/nowhere"}))
    assert "/nowhere/config.json" in refused(lambda: exchange.export_adapter(str(workdir), str(tmp_path / "out")))
    told = exchange.export_adapter(str(workdir), str(tmp_path / "out"), base=str(small_base))
    assert told == "clinical: prefix(virtual_tokens=3), a head of 3 labels"
