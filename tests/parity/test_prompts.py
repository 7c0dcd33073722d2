"""Prefix tuning, prompt tuning, P-tuning and the adaptation prompt against PEFT, its weights taken over."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch  # noqa: E402
from flax import nnx  # noqa: E402
from peft import (  # noqa: E402
    AdaptionPromptConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)

from jaxlora import partition  # noqa: E402
from jaxlora.config import default  # noqa: E402
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec, PTuningSpec  # noqa: E402
from jaxlora.models.techniques import spec_json  # noqa: E402
from jaxlora.train.assemble import assemble  # noqa: E402
from jaxlora.train.mesh import make_mesh  # noqa: E402

pytestmark = pytest.mark.parity

COUNT, LENGTH = 3, 9
CASES = {
    "prefix": (PrefixSpec(COUNT), PrefixTuningConfig(num_virtual_tokens=COUNT)),
    "prefix, projection": (
        PrefixSpec(COUNT, projection=True),
        PrefixTuningConfig(num_virtual_tokens=COUNT, prefix_projection=True),
    ),
    "prefix, wide projection": (
        PrefixSpec(COUNT, projection=True, hidden=11),
        PrefixTuningConfig(num_virtual_tokens=COUNT, prefix_projection=True, encoder_hidden_size=11),
    ),
    "prompt": (PromptSpec(COUNT), PromptTuningConfig(num_virtual_tokens=COUNT)),
    "p-tuning, mlp": (
        PTuningSpec(COUNT, encoder="mlp", hidden=7),
        PromptEncoderConfig(num_virtual_tokens=COUNT, encoder_hidden_size=7),
    ),
    "p-tuning, lstm": (
        PTuningSpec(COUNT, hidden=5, layers=2),
        PromptEncoderConfig(
            num_virtual_tokens=COUNT,
            encoder_hidden_size=5,
            encoder_num_layers=2,
            encoder_reparameterization_type="LSTM",
        ),
    ),
    "adaptation prompt": (AdaptationPromptSpec(4, 2), AdaptionPromptConfig(adapter_len=4, adapter_layers=2)),
}


def taken_over(tensors):
    """PEFT's parameters, or their gradients, by our path below `adapters/clinical`."""
    found = {}
    for theirs, value in tensors.items():
        value = value.detach().numpy()
        parts = theirs.split(".")
        if "adaption" in theirs:
            kind = "prompt" if parts[-1] == "adaption_prompt" else "gate"
            found.setdefault((kind,), []).append(value[0])
        elif "embedding" in parts:
            found["table",] = value
        elif "lstm_head" in parts:
            kind, which, layer = parts[-1].removesuffix("_reverse").split("_")
            leaf = {"weight": "", "bias": "_bias"}[kind]
            leaf = {"ih": "input", "hh": "recurrent"}[which] + leaf
            found.setdefault(("lstm", f"layer{layer[1:]}", leaf), []).append(value.T)
        else:
            number = int(parts[-2]) // 2
            owner = (("inner", "outer")[number],) if "transform" in parts else ("mlp", f"layer{number}")
            found[*owner, {"weight": "kernel", "bias": "bias"}[parts[-1]]] = value.T
    return {path: np.stack(value) if isinstance(value, list) else value for path, value in found.items()}


@pytest.fixture(scope="module")
def pair(bases):
    """(our model, PEFT's of the same parameters): `pair(case)`."""

    @functools.cache
    def make(case):
        spec, config = CASES[case]
        config = copy.deepcopy(config)
        folder, base = bases()
        config.task_type = TaskType.CAUSAL_LM
        torch.manual_seed(1)
        theirs = get_peft_model(copy.deepcopy(base), config).eval()
        with torch.no_grad():
            for name, weight in theirs.named_parameters():
                if "adaption_gate" in name:
                    weight.normal_()
        trained = {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}
        ours = ours_of(folder, spec)
        put = {("adapters", "clinical", *path): value for path, value in taken_over(trained).items()}
        state = dict(nnx.to_flat_state(partition.select(nnx.state(ours), ["adapter/clinical"])))
        assert {path: leaf.shape for path, leaf in state.items()} == {path: x.shape for path, x in put.items()}
        nnx.update(ours, nnx.from_flat_state([(path, leaf.replace(put[path])) for path, leaf in state.items()]))
        return ours, theirs

    return make


def ours_of(folder, spec):
    config = default()
    config.base, config.active = str(folder), ("clinical",)
    config.adapters["clinical"] = {**spec_json(spec), "workdir": ""}
    return assemble(config, 0, make_mesh(1, 1))


def rows(tokens, count):
    """Each note in a row of its own, behind its virtual tokens."""
    virtual = np.broadcast_to(-1 - np.arange(count), (len(tokens), count))
    tokens = np.concatenate([virtual, tokens], axis=1).astype(np.int32)
    return tokens, np.ones_like(tokens), np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_peft(case, pair):
    ours, theirs = pair(case)
    count = CASES[case][0].virtual_tokens
    tokens = np.random.default_rng(0).integers(3, 400, (2, LENGTH)).astype(np.int32)
    given = torch.tensor(tokens, dtype=torch.long)
    wanted = theirs(input_ids=given, attention_mask=torch.ones_like(given)).logits[:, -LENGTH:]
    loss = torch.nn.functional.cross_entropy(wanted[:, :-1].flatten(0, 1), given[:, 1:].flatten())
    loss.backward()
    trained = {name: weight.grad for name, weight in theirs.named_parameters() if weight.requires_grad}
    gradients = {("adapters", "clinical", *path): x for path, x in taken_over(trained).items()}

    definition, params, frozen = partition.split(ours, ("clinical",))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, frozen):
        model = nnx.merge(definition, params, frozen)
        logits = model.logits(model(*rows(tokens, count), ("clinical",)))[:, count:]
        log = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log, tokens[:, 1:, None], axis=-1).mean(), logits

    (_, logits), found = run(params, frozen)
    assert np.abs(np.asarray(logits) - wanted.detach().numpy()).max() <= 1e-4
    found = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(found)}
    assert set(found) == set(gradients)
    worst = max(np.linalg.norm(found[path] - x) / np.linalg.norm(x) for path, x in gradients.items())
    print(f"{case}: largest relative difference of a gradient {float(worst):.1e}")
    assert worst <= 1e-4
    alone = ours.logits(ours(*rows(tokens, 0)))
    assert np.abs(np.asarray(alone) - np.asarray(logits)).max() > 0.05
