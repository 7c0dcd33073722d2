"""Adapters combined and merged, against PEFT and transformers themselves: what is added, and the model exported."""

import copy
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from jaxlora import exchange  # noqa: E402
from jaxlora.data import builders  # noqa: E402
from jaxlora.data.tokens import Tokenizer, tokenize  # noqa: E402
from jaxlora.eval.predictions import load  # noqa: E402
from jaxlora.interop import peft as ours  # noqa: E402
from jaxlora.interop.combine import combine  # noqa: E402
from jaxlora.interop.llama_config import read_config  # noqa: E402
from jaxlora.models.lora_spec import MODULES, LoraSpec  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # Advice of PEFT and transformers; where a warning matters, `load_in_peft` makes it an error.
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")),
]
FIRST = LoraSpec(3, 6.0, targets=("q_proj", "v_proj"))
SECOND = LoraSpec(3, 1.5, targets=("v_proj", "up_proj"), rslora=True)


@pytest.fixture
def combined(bases, random_adapter, delta_weights, tmp_path):
    """(what one adapter of two adds to each layer here, and in PEFT): `combined(way, weights, specs)`."""
    folder, base = bases()

    def combined(way, weights, specs):
        adapters = [random_adapter(read_config(folder), spec, seed=i) for i, spec in enumerate(specs)]
        for name, part in zip(("first", "second"), adapters, strict=True):
            ours.write(tmp_path / name, part, "base")
        model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "first", adapter_name="first")
        model.load_adapter(tmp_path / "second", "second")
        model.add_weighted_adapter(["first", "second"], list(weights), "both", combination_type=way, svd_rank=2)
        one, _ = combine(adapters, weights, way, 2 if way == "svd" else 0)
        found = {module: one.size(module).scale * here["a"] @ here["b"] for module, here in one.weights.items()}
        return found, delta_weights(model, "both")

    return combined


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0)], ids=str)
@pytest.mark.parametrize("way", ["cat", "linear", "svd"])
def test_combined_adapters_add_what_they_do_in_peft(way, weights, combined):
    """PEFT puts weight and scale into A, here they are in B; the products are the same."""
    found, wanted = combined(way, weights, (FIRST, SECOND))
    assert set(found) == set(wanted) and len(found) == 9
    for module, delta in wanted.items():
        np.testing.assert_allclose(found[module], delta, atol=1e-5, rtol=0, err_msg=module)


def test_a_combination_that_begins_with_rslora_is_not_scaled_twice(combined):
    """PEFT 0.21 gives the result alpha = rank and keeps use_rslora of the first adapter, so that it comes out
    sqrt(rank) times too large; here it is the sum."""
    found, wanted = combined("cat", (1.0, 1.0), (SECOND, FIRST))
    for module, delta in wanted.items():
        np.testing.assert_allclose(found[module] * 6**0.5, delta, atol=1e-5, rtol=0, err_msg=module)


PATTERNS = dict(
    target_modules=["q_proj", "v_proj", "down_proj"],
    rank_pattern={"q_proj": 2, "model.layers.1.self_attn.v_proj": 7},
    alpha_pattern={"down_proj": 3, "model.layers.2.self_attn.q_proj": 9, "v_proj": 8},
)
HEAD = "SequenceClassification"
# name: what LoraConfig is given, and where it is not LLaMA for causal language modelling, the family and the task.
OPTIONS = {
    "patterns": (PATTERNS,),
    "dora": ({"use_dora": True, "target_modules": list(MODULES)},),
    "dora, rslora, patterns": ({**PATTERNS, "use_dora": True, "use_rslora": True},),
    "qwen2": ({"target_modules": "all-linear"}, "Qwen2"),
    "head": ({}, "Llama", HEAD),
    "head, dora, rslora": ({"use_dora": True, "use_rslora": True, "target_modules": "all-linear"}, "Llama", HEAD),
    "head, qwen2": ({"target_modules": list(MODULES)}, "Qwen2", HEAD),
}


@pytest.mark.parametrize("option", ["patterns", "dora", "qwen2", "head", "head, dora, rslora", "head, qwen2"])
def test_exported_model_gives_the_logits_of_the_run_in_transformers(option, bases, made_by_peft, theirs, tmp_path):
    fields, *which = OPTIONS[option]
    folder, base = bases(*which)
    model = made_by_peft(base, **fields)
    model.save_pretrained(tmp_path / "adapter")
    exchange.import_adapter(str(tmp_path / "adapter"), str(folder), "clinical", str(tmp_path / "run"))
    told = exchange.export_model(str(tmp_path / "run"), str(tmp_path / "merged"))
    assert float(told.split()[3]) <= 1e-4
    written = getattr(transformers, f"AutoModelFor{HEAD if option.startswith('head') else 'CausalLM'}").from_pretrained(
        tmp_path / "merged"
    )
    assert type(written) is type(base) and written.dtype == torch.float32
    for side in ("right", "left"):
        difference = np.abs(theirs(written, side) - theirs(model, side)).max()
        print(f"largest logit difference {difference:.1e}")
        assert difference <= 2e-4


@pytest.mark.parametrize("option", ["patterns", "dora, rslora, patterns"])
def test_weights_of_a_bfloat16_base_are_merged_in_float32_and_cast_once(option, bases, made_by_peft, tmp_path):
    folder, base = bases()
    halved = copy.deepcopy(base).to(torch.bfloat16)
    halved.save_pretrained(tmp_path / "base")
    shutil.copyfile(folder / "tokenizer.model", tmp_path / "base" / "tokenizer.model")
    model = made_by_peft(halved.to(torch.float32), **OPTIONS[option][0])
    model.save_pretrained(tmp_path / "adapter")
    exchange.import_adapter(str(tmp_path / "adapter"), str(tmp_path / "base"), "clinical", str(tmp_path / "run"))
    exchange.export_model(str(tmp_path / "run"), str(tmp_path / "merged"))
    found, wanted = load_file(tmp_path / "merged" / "model.safetensors"), model.merge_and_unload().state_dict()
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert set(found) == set(before)
    targeted = [name for name in found if name.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight"))]
    for name in found:
        assert found[name].dtype == torch.bfloat16
        if name not in targeted:
            assert torch.equal(found[name], before[name])
            continue
        assert not torch.equal(found[name], before[name])
        # Sums in another order: where one of a thousand lies between two numbers of bfloat16, it may fall to either.
        same = found[name] == wanted[name].to(torch.bfloat16)
        assert same.float().mean() >= 0.998
        torch.testing.assert_close(found[name].float(), wanted[name], rtol=2**-8, atol=1e-6)


def test_a_run_that_was_trained_whole_gives_its_logits_in_transformers(small, tmp_path):
    run = tmp_path / "run"
    flags = [*small.flags("head_only"), "--config.trainable=base,head", "--config.epochs=1"]
    assert small.run("train", *flags, f"--workdir={run}") == 0 == small.run("evaluate", f"--workdir={run}")
    assert small.run("export-model", f"--workdir={run}", f"--output={tmp_path / 'model'}") == 0
    written = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert type(written).__name__ == "LlamaForSequenceClassification" and written.dtype == torch.float32
    test, found = builders.load(small.data, "outcome").split("test"), load(run / "predictions-test.npz")
    notes = tokenize(test, Tokenizer(small.base), 64, "truncate", lambda _: None)
    parts = np.split(notes.tokens, notes.offsets[1:-1])
    with torch.no_grad():
        logits = [written(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy() for ids in parts]
    assert notes.ids.tolist() == found.ids.tolist() and len(parts) > 10
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
