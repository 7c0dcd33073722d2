"""adapter_config.json: one canonical writing, and a lenient reading of what PEFT wrote from 2023 to 2026."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlora.interop import peft
from jaxlora.interop.peft_config import spec_of_sizes
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import MODULES, LoraSize, LoraSpec, module_names

LAYERS = 3
ALL = tuple(MODULES)
QV = LoraSpec(4, 6.0)
FULL = "model.layers.{}.self_attn.{}"


def read_config(folder, layers):
    shape = LlamaConfig(vocab=32, embed=16, mlp=24, layers=layers, heads=4, kv_heads=2, head_dim=4)
    return peft.read_config(folder, shape)[1:]


def to_json(spec, layers, head, base):
    return peft.to_json(peft.Adapter(spec, layers, {}, np.zeros((1, 1)) if head else None), base)


def canonical(spec, layers=LAYERS):
    return spec_of_sizes(spec.sizes(layers), layers, spec.dropout, spec.dora)


# What is given, and its shortest form.
SHORTEST = {
    "as it is": (QV, QV),
    "all by list": (LoraSpec(4, 6.0, targets=("all-linear",)), LoraSpec(4, 6.0, targets=ALL)),
    "order": (LoraSpec(4, 6.0, targets=("v_proj", "q_proj")), QV),
    "regex": (LoraSpec(4, 6.0, targets=(r".*\.(q|v)_proj",)), QV),
    "regex of layers": (
        LoraSpec(4, 6.0, targets=(r".*layers\.[02]\.self_attn\.(q|v)_proj",)),
        LoraSpec(4, 6.0, layers=(0, 2)),
    ),
    "every layer": (LoraSpec(4, 6.0, layers=(2, 0, 1)), QV),
    "not the same in each layer": (
        LoraSpec(4, 6.0, targets=(r".*0\.self_attn\.q_proj", r".*1\.self_attn\.v_proj", r".*0\.self_attn\.v_proj")),
        LoraSpec(4, 6.0, targets=(FULL.format(0, "q_proj"), FULL.format(0, "v_proj"), FULL.format(1, "v_proj"))),
    ),
    "patterns for all": (
        LoraSpec(9, 9.0, ranks=(("self_attn.*", 4),), alphas=(("q_proj", 6.0), ("v_proj", 6.0))),
        QV,
    ),
    "patterns for most": (
        LoraSpec(2, 6.0, targets=("q_proj", "k_proj", "v_proj"), ranks=(("q_proj", 4), ("k_proj", 4))),
        LoraSpec(4, 6.0, targets=("q_proj", "k_proj", "v_proj"), ranks=(("v_proj", 2),)),
    ),
    "of two as frequent, the smaller": (
        LoraSpec(4, 6.0, ranks=(("v_proj", 2),)),
        LoraSpec(2, 6.0, ranks=(("q_proj", 4),)),
    ),
    "pattern of one layer": (
        LoraSpec(4, 6.0, ranks=((r".*layers\.1\..*q_proj", 2), ("q_proj", 4))),
        LoraSpec(4, 6.0, ranks=((FULL.format(1, "q_proj"), 2),)),
    ),
    "rest": (
        LoraSpec(4, 6.5, dropout=0.1, rslora=True, dora=True, targets=("down_proj", "q_proj")),
        LoraSpec(4, 6.5, dropout=0.1, rslora=True, dora=True, targets=("q_proj", "down_proj")),
    ),
}


@pytest.mark.parametrize("case", SHORTEST)
def test_the_shortest_form_is_written_and_read_back(case, tmp_path):
    spec, shortest = SHORTEST[case]
    assert canonical(spec) == shortest == canonical(shortest)
    for head in (False, True):
        written = to_json(spec, LAYERS, head, "base")
        assert written == to_json(shortest, LAYERS, head, "base")
        (tmp_path / "adapter_config.json").write_text(json.dumps(written))
        assert read_config(tmp_path, LAYERS) == (shortest, head)


@pytest.mark.parametrize("seed", range(20))
def test_any_sizes_are_described_exactly_and_in_one_way(seed):
    rng, layers = np.random.default_rng(seed), 1 + seed % 4
    names = rng.permutation(module_names(layers))[: rng.integers(1, 7 * layers + 1)].tolist()
    sizes = {str(m): LoraSize(int(rng.integers(1, 4)), float(rng.integers(1, 4)), bool(seed % 2)) for m in names}
    spec = spec_of_sizes(sizes, layers)
    assert spec.sizes(layers) == sizes
    assert spec_of_sizes(dict(sorted(sizes.items())), layers) == spec  # whatever order they are given in
    spec.check(layers, "spec")


def test_what_is_written_is_always_the_same():
    targets, ranks, alphas = ("down_proj", "q_proj", "v_proj"), (("q_proj", 2),), (("down_proj", 3.0),)
    spec = LoraSpec(4, 6.5, 0.1, targets, (2, 0), ranks, alphas, rslora=True, dora=True)
    assert to_json(spec, LAYERS, True, "llama") == {
        "alpha_pattern": {"down_proj": 3},
        "base_model_name_or_path": "llama",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": [0, 2],
        "lora_alpha": 6.5,
        "lora_dropout": 0.1,
        "modules_to_save": ["score"],
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {"q_proj": 2},
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "task_type": "SEQ_CLS",
        "use_dora": True,
        "use_rslora": True,
    }


# As PEFT of that version writes a LoRA of q and v, its defaults included; each adds to the one before.
VERSIONS = {
    "0.2": dict(
        base_model_name_or_path="decapoda-research/llama-7b-hf",
        bias="none",
        enable_lora=None,
        fan_in_fan_out=False,
        inference_mode=True,
        lora_alpha=6,
        lora_dropout=0.05,
        merge_weights=False,
        modules_to_save=None,
        peft_type="LORA",
        r=4,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
}
VERSIONS["0.3"] = {**VERSIONS["0.2"], "init_lora_weights": True}
del VERSIONS["0.3"]["enable_lora"], VERSIONS["0.3"]["merge_weights"]
VERSIONS["0.4"] = {
    **VERSIONS["0.3"],
    **dict(auto_mapping=None, layers_pattern=None, layers_to_transform=None, revision=None),
}
VERSIONS["0.7"] = {
    **VERSIONS["0.4"],
    **dict(alpha_pattern={}, loftq_config={}, megatron_config=None, megatron_core="megatron.core", rank_pattern={}),
}
VERSIONS["0.13"] = {**VERSIONS["0.7"], **dict(layer_replication=None, use_dora=False, use_rslora=False)}
VERSIONS["0.17"] = {
    **VERSIONS["0.13"],
    **dict(corda_config=None, eva_config=None, exclude_modules=None, lora_bias=False, qalora_group_size=16),
    **dict(target_parameters=None, trainable_token_indices=None, use_qalora=False),
}
VERSIONS["0.21"] = {
    **VERSIONS["0.17"],
    **dict(alora_invocation_tokens=None, arrow_config=None, ensure_weight_tying=False, kasa_config=None),
    **dict(lora_ga_config=None, monteclora_config=None, peft_version="0.21.2", use_bdlora=None, velora_config=None),
}


@pytest.fixture
def config_of(tmp_path):
    """Writes an adapter_config.json of PEFT 0.21 with fields changed: `config_of(**fields)`; gives its folder."""

    def write(version="0.21", **fields):
        raw = {**VERSIONS[version], **fields}
        (tmp_path / "adapter_config.json").write_text(json.dumps(raw))
        return tmp_path

    return write


@pytest.mark.parametrize("version", VERSIONS)
def test_config_of_every_version_is_read(version, config_of):
    spec = dataclasses.replace(QV, dropout=0.05)
    assert read_config(config_of(version), LAYERS) == (spec, False)
    head = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    assert read_config(config_of(version, **head), LAYERS) == (spec, True)


# PEFT's fields, and the layers that its rules choose: a number and a name.
RULES = {
    "PEFT's choice": ({"target_modules": None}, {(i, n) for i in range(3) for n in ("q_proj", "v_proj")}),
    "all-linear": ({"target_modules": "all-linear"}, {(i, n) for i in range(3) for n in ALL}),
    "longer ends": ({"target_modules": ["mlp.up_proj"]}, {(i, "up_proj") for i in range(3)}),
    "a list is no regex": ({"target_modules": ["q_proj", ".*up_proj"]}, {(i, "q_proj") for i in range(3)}),
    "a regex is of the whole name": (
        {"target_modules": r"model\.layers\.1\..*[qk]_proj"},
        {(1, "q_proj"), (1, "k_proj")},
    ),
    "layers": ({"layers_to_transform": [2, 0], "target_modules": ["q_proj"]}, {(0, "q_proj"), (2, "q_proj")}),
    "layer 0": ({"layers_to_transform": 0, "target_modules": ["q_proj"]}, {(0, "q_proj")}),
    "no layers": ({"layers_to_transform": [], "target_modules": ["q_proj"]}, {(i, "q_proj") for i in range(3)}),
    "named layers": (
        {"layers_to_transform": [1], "layers_pattern": ["h", "layers"], "target_modules": ["q_proj"]},
        {(1, "q_proj")},
    ),
    "layers named in full": (
        {"layers_to_transform": [1], "layers_pattern": "model.layers", "target_modules": ["q_proj"]},
        {(1, "q_proj")},
    ),
    "a full name is taken in any layer": (
        {"layers_to_transform": [1], "target_modules": ["q_proj", FULL.format(2, "v_proj")]},
        {(1, "q_proj"), (2, "v_proj")},
    ),
    "excluded": (
        {"exclude_modules": ["q_proj", FULL.format(1, "v_proj")]},
        {(0, "v_proj"), (2, "v_proj")},
    ),
    "excluded by regex": ({"exclude_modules": r".*\.[12]\..*"}, {(0, "q_proj"), (0, "v_proj")}),
    "an excluded lm_head is none": (
        {"target_modules": r".*(q_proj|lm_head)", "exclude_modules": ["lm_head"]},
        {(i, "q_proj") for i in range(3)},
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_layers_are_chosen_by_the_rules_of_peft(case, config_of):
    fields, wanted = RULES[case]
    spec, _ = read_config(config_of(**fields), LAYERS)
    assert {(int(m.split(".")[2]), m.split(".")[-1]) for m in spec.sizes(LAYERS)} == wanted


def test_the_first_pattern_that_matches_holds(config_of):
    folder = config_of(
        rank_pattern={"layers.1.self_attn.q_proj": 7, "q_proj": 2, FULL.format(0, "q_proj"): 9},
        alpha_pattern={"^model.layers.2.*": 1, ".*": 3},
    )
    sizes = read_config(folder, LAYERS)[0].sizes(LAYERS)
    assert [sizes[FULL.format(i, "q_proj")].rank for i in range(3)] == [2, 7, 2]
    assert [sizes[FULL.format(i, "v_proj")].rank for i in range(3)] == [4, 4, 4]
    assert [sizes[FULL.format(i, "v_proj")].alpha for i in range(3)] == [3.0, 3.0, 1.0]


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_an_adapter_that_leaves_the_base_alone_may_start_in_any_way(start, config_of):
    assert read_config(config_of(init_lora_weights=start), LAYERS)[0].init == "lora"


@pytest.mark.parametrize("value", [None, [], {}, "", False, 0])
def test_an_unknown_field_that_is_empty_is_passed_over(value, config_of):
    assert read_config(config_of(use_tomorrow=value), LAYERS)[0].rank == 4


REFUSED = {
    "unknown": ({"use_tomorrow": 1}, "use_tomorrow = 1"),
    "bias": ({"bias": "all"}, "bias = 'all'"),
    "bias of LoRA's layers": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
    "lora_bias": ({"lora_bias": True}, "lora_bias = True"),
    "layer_replication": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "tokens": ({"trainable_token_indices": [5]}, "trainable_token_indices = [5]"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "arrow": ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "QALoRA": ({"use_qalora": True}, "use_qalora"),
    "megatron": ({"megatron_config": {"a": 1}}, "megatron_config"),
    "2023, one adapter for three": ({"enable_lora": [True, False, True]}, "enable_lora"),
    "trained embedding": ({"modules_to_save": ["embed_tokens", "score"]}, "modules_to_save = ['embed_tokens']"),
    "trained lm_head": ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
    "LoRA of lm_head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head has no adapter here"),
    "LoRA of everything": ({"target_modules": ".*"}, "lm_head has no adapter here"),
    "LoRA of the embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens has no adapter here"),
    "another technique": ({"peft_type": "VERA"}, "peft_type = 'VERA'"),
    "no type": ({"peft_type": None}, "peft_type = None"),
    "task": ({"task_type": "TOKEN_CLS"}, "task_type = 'TOKEN_CLS'"),
    **{
        start: ({"init_lora_weights": start}, f"init_lora_weights = '{start}' changed the base's weights")
        for start in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")
    },
    "another model": ({"target_modules": ["query_key_value"]}, "matches no layer of the base"),
    "layers of another model": ({"layers_to_transform": [7]}, "matches no layer of the base"),
    "other layers": ({"layers_to_transform": [1], "layers_pattern": "h"}, "layers_pattern = 'h'"),
    "rank 0": ({"r": 0}, "rank is 0"),
    "rank 0 by pattern": ({"rank_pattern": {"q_proj": 0}}, "it must be 1 or more"),
    "dropout": ({"lora_dropout": 1.5}, "dropout is 1.5"),
    "no number": ({"r": "four"}, "a field is not of its type"),
    "infinite": ({"r": float("inf")}, "a field is not of its type"),
    "alpha is NaN": ({"lora_alpha": float("nan")}, "a field is not of its type"),
    "pattern is a list": ({"rank_pattern": ["q_proj"]}, "a field is not of its type"),
    "pattern is no regex": ({"rank_pattern": {"(": 1}}, "a field is not of its type"),
    "target is no regex": ({"target_modules": "("}, "a field is not of its type"),
    "targets are a number": ({"target_modules": 5}, "a field is not of its type"),
    "saved is a number": ({"modules_to_save": 5}, "a field is not of its type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(case, config_of, refused):
    fields, part = REFUSED[case]
    folder = config_of(**fields)
    line = refused(lambda: read_config(folder, LAYERS))
    assert str(folder / "adapter_config.json") in line and part in line


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_a_missing_size_is_named(field, config_of, refused):
    folder = config_of()
    raw = json.loads((folder / "adapter_config.json").read_text())
    del raw[field]
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    assert f"no field '{field}'" in refused(lambda: read_config(folder, LAYERS))


DAMAGED = {"empty": "", "cut": "{", "list": "[]", "null": "null", "no UTF-8": "\xff\xfe", "deep": "[" * 100_000}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_one_line(content, tmp_path, refused):
    (tmp_path / "adapter_config.json").write_bytes(content.encode("latin-1"))
    assert "is not a JSON object" in refused(lambda: read_config(tmp_path, LAYERS))


def test_a_folder_without_a_config_is_named(tmp_path, refused):
    assert f"no {tmp_path / 'adapter_config.json'}" in refused(lambda: read_config(tmp_path, LAYERS))
