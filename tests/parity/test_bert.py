"""BERT against transformers and PEFT: hidden states, logits and gradients, of notes alone and of packed ones."""

import copy
import types

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.config import adapter, default
from jaxlora.interop import bert
from jaxlora.models.lora_spec import module_name
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh
from jaxlora.train.objective import Objective

pytestmark = pytest.mark.parity

CLASSES, VOCAB = 3, 50
NOTES = [np.random.default_rng(n).integers(1, VOCAB, n) for n in (5, 9, 3, 12)]
LABELS = [2, 0, 1, 1]
TARGETS = {"query and value": ("query", "value"), "every layer": ("all-linear",)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A random model of transformers, no bias of it zero, and the folder of its base."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    sizes = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    rates = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = transformers.BertConfig(**sizes, **rates, max_position_embeddings=16, num_labels=CLASSES)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return types.SimpleNamespace(folder=folder, model=model)


@pytest.fixture(scope="module")
def ours(theirs):
    """The same model here, its head that of transformers: `ours(trainable, adapters)`."""

    def make(trainable, adapters):
        config = default()
        config.base, config.trainable, config.active = str(theirs.folder), trainable, tuple(adapters)
        config.adapters.update(adapters)
        model = assemble(config, CLASSES, make_mesh(1, 1))
        weights = theirs.model.classifier
        model.head.kernel[...] = weights.weight.detach().numpy().T
        model.head.bias[...] = weights.bias.detach().numpy()
        return model

    return make


def batch_of(packed):
    """The notes all in one row, or each in its own."""
    rows, length, slots = (1, 32, 4) if packed else (4, 16, 1)
    batch = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "segments", "positions")}
    batch |= {name: np.zeros((rows, slots), np.int32) for name in ("notes", "labels")}
    at = 0
    for i, ids in enumerate(NOTES):
        row, slot = (0, i) if packed else (i, 0)
        here = slice(at, at + len(ids)) if packed else slice(0, len(ids))
        batch["tokens"][row, here], batch["segments"][row, here] = ids, slot + 1
        batch["positions"][row, here] = np.arange(len(ids))
        batch["notes"][row, slot], batch["labels"][row, slot] = i + 1, LABELS[i]
        at += len(ids)
    return batch


def torch_inputs():
    import torch

    ids, real = torch.zeros(4, 16, dtype=torch.long), torch.zeros(4, 16, dtype=torch.long)
    for i, note in enumerate(NOTES):
        ids[i, : len(note)], real[i, : len(note)] = torch.tensor(note), 1
    return {"input_ids": ids, "attention_mask": real}


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_states_and_logits_are_those_of_transformers(theirs, ours, packed):
    model, batch = ours(("head",), {}), batch_of(packed)
    out = theirs.model(**torch_inputs(), output_hidden_states=True)
    found = np.asarray(model(batch["tokens"], batch["segments"], batch["positions"]))
    kept = np.concatenate([out.hidden_states[-1][i, : len(note)].detach().numpy() for i, note in enumerate(NOTES)])
    np.testing.assert_allclose(found[batch["segments"] > 0], kept, atol=1e-4)
    logits = np.asarray(Objective("multiclass", ()).note_logits(model, batch))[batch["notes"] > 0]
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-4)
    assert np.abs(logits).max() > 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_the_whole_model_are_those_of_transformers(theirs, ours, packed):
    import torch

    model = copy.deepcopy(theirs.model)
    model(**torch_inputs(), labels=torch.tensor(LABELS)).loss.backward()
    wanted = {name.removeprefix("bert."): weight.grad.numpy() for name, weight in model.named_parameters()}
    found = gradients(ours(("base", "head"), {}), ("base", "head"), (), batch_of(packed))
    for path, value in found.items():
        if path[0] == "head":
            names = [{"kernel": "classifier.weight", "bias": "classifier.bias"}[path[1]]]
        else:
            names = bert.tensor_names(path, 2)
        for i, name in enumerate(names):
            part = value[i] if path[0] == "blocks" else value
            part = part.T if path[-1] == "kernel" else part
            np.testing.assert_allclose(part, wanted.pop(name), atol=1e-4, err_msg=name)
    assert not wanted


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("which", TARGETS)
def test_lora_is_that_of_peft(theirs, ours, which, packed):
    import peft
    import torch

    spec = adapter(3, 6.0, targets=TARGETS[which])
    named = [module_name(name, 0).removeprefix("bert.encoder.layer.0.") for name in bert.BERT_MODULES]
    targets = rf".*layer\.\d+\.({'|'.join(named)})" if which == "every layer" else list(TARGETS[which])
    torch.manual_seed(1)
    model = peft.get_peft_model(
        copy.deepcopy(theirs.model),
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, task_type="SEQ_CLS"),
    ).eval()
    mine = ours(("downstream", "head"), {"downstream": spec})
    weights, theirs_by_path = {}, {}
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            module, _, leaf = name.removeprefix("base_model.model.").partition(".lora_")
            torch.nn.init.normal_(weight, std=0.3)
            weights[module, leaf[0].lower()] = weight
    state = nnx.state(mine)
    for path, leaf in nnx.to_flat_state(state):
        if "adapters" in path:
            theirs_by_path[path] = [weights.pop((module_name(path[1], i), path[-1])) for i in range(2)]
            leaf.set_value(np.stack([weight.detach().numpy().T for weight in theirs_by_path[path]]))
    assert not weights and theirs_by_path
    nnx.update(mine, state)
    out = model(**torch_inputs(), labels=torch.tensor(LABELS))
    out.loss.backward()
    batch = batch_of(packed)
    logits = Objective("multiclass", ("downstream",)).note_logits(mine, batch)
    np.testing.assert_allclose(np.asarray(logits)[batch["notes"] > 0], out.logits.detach().numpy(), atol=1e-4)
    found = gradients(mine, ("downstream", "head"), ("downstream",), batch)
    of_head = dict(model.named_parameters())["base_model.model.classifier.modules_to_save.default.weight"].grad
    np.testing.assert_allclose(found.pop(("head", "kernel")).T, of_head.numpy(), atol=1e-4)
    found.pop(("head", "bias"))
    assert set(found) == set(theirs_by_path)
    for path, value in found.items():
        wanted = np.stack([weight.grad.numpy().T for weight in theirs_by_path[path]])
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(value, wanted, atol=1e-4, err_msg=path)


def gradients(model, trainable, active, batch):
    definition, params, frozen = partition.split(model, trainable)
    objective = Objective("multiclass", active)

    @jax.jit
    @jax.grad
    def gradient(params):
        return objective.loss(nnx.merge(definition, params, frozen), batch)

    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradient(params))}


@pytest.mark.parametrize("old", [False, True])
def test_a_pickled_model_gives_the_same(theirs, tmp_path, old):
    """Of PyTorch's own format or its older one, with the norms called gamma and beta, and what no encoder needs."""
    import torch

    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    state = {}
    for name, value in theirs.model.state_dict().items():
        for new, was in names.items():
            name = name.replace(new, was)
        state[name] = value
    state["bert.embeddings.position_ids"] = torch.arange(16)
    state["cls.predictions.bias"] = torch.zeros(VOCAB)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    (tmp_path / "config.json").write_bytes((theirs.folder / "config.json").read_bytes())
    config = default()
    config.base, config.trainable = str(tmp_path), ("head",)
    found = nnx.to_flat_state(nnx.state(assemble(config, CLASSES, make_mesh(1, 1))))
    config.base = str(theirs.folder)
    wanted = nnx.to_flat_state(nnx.state(assemble(config, CLASSES, make_mesh(1, 1))))
    for (path, value), (_, other) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(value[...], other[...], err_msg=path)
