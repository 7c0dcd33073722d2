"""Directories of the techniques beside LoRA: what PEFT wrote computes the same here, and what we write in PEFT."""

import copy
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import jax  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402
from peft import (  # noqa: E402
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from jaxlora import partition  # noqa: E402
from jaxlora.interop import peft as ours  # noqa: E402
from jaxlora.interop.llama_config import read_config  # noqa: E402
from jaxlora.models.adalora import AdaLoraSpec  # noqa: E402
from jaxlora.models.ia3 import Ia3Spec  # noqa: E402
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec, PTuningSpec  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")),
]
COUNT, LENGTH, UPDATES = 3, 9, 4
HEAD = "SequenceClassification"
QV = ["q_proj", "v_proj"]
ADA = dict(init_r=4, target_r=2, lora_alpha=6, tinit=0, tfinal=1, total_step=UPDATES, target_modules=QV)
# name: what PEFT trains, and what its directory is here.
MADE_THERE = {
    "prefix": (PrefixTuningConfig(num_virtual_tokens=COUNT), PrefixSpec(COUNT)),
    "prefix, projection": (
        PrefixTuningConfig(num_virtual_tokens=COUNT, prefix_projection=True, encoder_hidden_size=11),
        PrefixSpec(COUNT),
    ),
    "prompt": (PromptTuningConfig(num_virtual_tokens=COUNT), PromptSpec(COUNT)),
    "p-tuning, mlp": (PromptEncoderConfig(num_virtual_tokens=COUNT, encoder_hidden_size=7), PromptSpec(COUNT)),
    "p-tuning, lstm": (
        PromptEncoderConfig(num_virtual_tokens=COUNT, encoder_hidden_size=5, encoder_reparameterization_type="LSTM"),
        PromptSpec(COUNT),
    ),
    "adaptation prompt": (AdaptionPromptConfig(adapter_len=4, adapter_layers=2), AdaptationPromptSpec(4, 2)),
    "adalora": (AdaLoraConfig(**ADA), AdaLoraSpec(4, 6.0, target_rank=2, end=1)),
    "adalora, layers": (
        AdaLoraConfig(**ADA, layers_to_transform=[0, 2], orth_reg_weight=0.1),
        AdaLoraSpec(4, 6.0, target_rank=2, end=1, layers=(0, 2), orthogonality=0.1),
    ),
    "ia3": (IA3Config(), Ia3Spec()),
    "ia3, regex": (
        IA3Config(target_modules=r".*\.[02]\.(self_attn.q|mlp.up)_proj", feedforward_modules=r".*up_proj"),
        Ia3Spec(
            tuple(f"model.layers.{i}.{name}" for i in (0, 2) for name in ("self_attn.q_proj", "mlp.up_proj")),
            ("up_proj",),
        ),
    ),
}
# What is trained here, among it what goes out as something plainer.
MADE_HERE = {
    "prefix": PrefixSpec(COUNT),
    "prefix, projection": PrefixSpec(COUNT, projection=True, hidden=7),
    "prompt": PromptSpec(COUNT),
    "p-tuning, mlp": PTuningSpec(COUNT, encoder="mlp", hidden=7),
    "p-tuning, lstm": PTuningSpec(COUNT, hidden=5, layers=2),
    "adaptation prompt": AdaptationPromptSpec(4, 2),
    "adalora": AdaLoraSpec(4, 6.0, target_rank=2, start=1, end=1, layers=(1, 2)),
    "ia3": Ia3Spec(),
    "ia3, some": Ia3Spec((r".*\.[01]\.self_attn\.v_proj", "up_proj"), ("up_proj",)),
}
TOKENS = np.random.default_rng(0).integers(3, 400, (2, LENGTH)).astype(np.int32)
WITH_HEAD = [name for name in MADE_THERE if name in ("prefix, projection", "prompt", "adalora", "ia3")]


def theirs_logits(model):
    given = torch.tensor(TOKENS, dtype=torch.long)
    with torch.no_grad():
        logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits
    return logits.numpy() if logits.ndim == 2 else logits[:, -LENGTH:].numpy()


def ours_logits(model, count):
    virtual = np.broadcast_to(-1 - np.arange(count), (len(TOKENS), count))
    tokens = np.concatenate([virtual, TOKENS], axis=1).astype(np.int32)
    segments, positions = np.ones_like(tokens), np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def run(state):
        here = nnx.merge(definition, state)
        hidden = here(tokens, segments, positions, ("clinical",))
        return here.head(hidden, segments, 1)[:, 0] if hasattr(here, "head") else here.logits(hidden)[:, count:]

    definition, state = nnx.split(model)
    return np.asarray(run(state))


def trained_by_peft(base, config, task):
    config = copy.deepcopy(config)
    config.task_type = task
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


CASES = [(name, "CausalLM") for name in MADE_THERE] + [(name, HEAD) for name in WITH_HEAD]


@pytest.mark.parametrize("name, task", CASES, ids=str)
def test_a_directory_of_peft_gives_its_logits_here(name, task, bases, read, tmp_path):
    config, spec = MADE_THERE[name]
    folder, base = bases("Llama", task)
    model = trained_by_peft(base, config, "SEQ_CLS" if task == HEAD else "CAUSAL_LM")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    found, here = read(tmp_path, folder)
    assert found.spec == spec and (found.head is not None) == (task == HEAD)
    np.testing.assert_allclose(ours_logits(here, getattr(spec, "virtual_tokens", 0)), theirs_logits(model), atol=1e-4)
    assert np.abs(theirs_logits(model) - theirs_logits(base)).max() > 0.05  # else a lost adapter would go unseen


def test_an_adalora_that_peft_has_cut_down_gives_its_logits_here(bases, read, tmp_path):
    """At the end of a training PEFT leaves the triplets out that were not chosen, but scales by the first rank."""
    folder, base = bases()
    model = trained_by_peft(base, MADE_THERE["adalora"][0], "CAUSAL_LM")
    given = torch.tensor(TOKENS, dtype=torch.long)
    for update in range(UPDATES):
        model.zero_grad()
        model(input_ids=given, labels=given).loss.backward()
        model.base_model.update_and_allocate(update)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    left = [sum(kept) for kept in json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"].values()]
    assert sum(left) == 2 * 6 and min(left) < 2
    found, here = read(tmp_path, folder)
    assert all(x["a"].shape[1] == 4 for x in found.weights.values())
    np.testing.assert_allclose(ours_logits(here, 0), theirs_logits(model), atol=1e-4)


CASES = [(name, 0) for name in MADE_HERE] + [(name, 3) for name in ("prefix", "p-tuning, mlp", "adalora", "ia3, some")]


@pytest.mark.parametrize("name, labels", CASES, ids=str)
def test_a_directory_from_here_gives_the_same_logits_in_peft(
    name, labels, bases, assembled, with_values, read, load_in_peft, tmp_path
):
    spec = MADE_HERE[name]
    folder, base = bases("Llama", HEAD if labels else "CausalLM")
    model, rng = assembled(folder, spec, labels), np.random.default_rng(3)
    values = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if partition.partition_of(path) != "base":
            value = np.asarray(leaf[...])
            there = np.any(value, axis=tuple(range(1, value.ndim)), keepdims=True) if path[-1] in ("a", "b") else 1.0
            values[path] = (value + 0.3 * there * rng.normal(size=value.shape)).astype(np.float32)
    made = with_values(model, values)
    adapter = ours.from_parameters(values, "clinical", spec, {}, read_config(folder))
    head = values.get(("head", "kernel"))
    ours.write(tmp_path / "out", ours.Adapter(adapter.spec, adapter.layers, adapter.weights, head), "base")
    wanted = ours_logits(made, getattr(spec, "virtual_tokens", 0))
    theirs = load_in_peft(tmp_path / "out", base)
    np.testing.assert_allclose(theirs_logits(theirs), wanted, atol=1e-4)
    again = read(tmp_path / "out", folder)[1]
    np.testing.assert_allclose(ours_logits(again, getattr(spec, "virtual_tokens", 0)), wanted, atol=1e-5)
    if isinstance(spec, AdaLoraSpec):  # PEFT trains it on, and no adapter of virtual tokens
        continued = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out", is_trainable=True).eval()
        np.testing.assert_allclose(theirs_logits(continued), wanted, atol=1e-4)
    assert np.abs(theirs_logits(base) - wanted).max() > 0.05
