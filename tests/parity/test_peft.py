"""Adapters in and out, against PEFT itself: the same logits on either side, and the same gradients."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch  # noqa: E402
from flax import nnx  # noqa: E402

from jaxlora import partition  # noqa: E402
from jaxlora.interop import peft as ours  # noqa: E402
from jaxlora.models.lora_spec import MODULES, LoraSpec  # noqa: E402
from jaxlora.train.objective import Objective  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # Advice of PEFT and transformers; where a warning matters, `load_in_peft` makes it an error.
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")),
]
ALL = tuple(MODULES)
CLASSES = 3


@pytest.fixture(scope="session")
def assert_same_logits(logits, theirs):
    """That both give the same, padded on either side; keeps the largest difference in the report of the test."""

    def check(model, theirs_model, atol=2e-4):
        for side in ("right", "left"):
            found, wanted = logits(model, side), theirs(theirs_model, side)
            print(f"largest logit difference {float(np.abs(found - wanted).max()):.1e}")
            np.testing.assert_allclose(found, wanted, atol=atol, rtol=0, err_msg=side)

    return check


PATTERNS = dict(
    target_modules=["q_proj", "v_proj", "down_proj"],
    rank_pattern={"q_proj": 2, "model.layers.1.self_attn.v_proj": 7},
    alpha_pattern={"down_proj": 3, "model.layers.2.self_attn.q_proj": 9, "v_proj": 8},
)
HEAD = "SequenceClassification"
# name: what LoraConfig is given, and where it is not LLaMA for causal language modelling, the family and the task.
OPTIONS = {
    "default": ({},),
    "all by list": ({"target_modules": list(ALL)},),
    "all-linear": ({"target_modules": "all-linear"},),
    "regex": ({"target_modules": r".*\.[01]\.(self_attn\.q|mlp\.up)_proj|model\.layers\.2\..*down.*"},),
    "patterns": (PATTERNS,),
    "pattern by regex": (
        {"rank_pattern": {r"layers.[12].self_attn\.(q|v)_proj": 3, "v_proj": 6}, "alpha_pattern": {"0.*q_proj": 1}},
    ),
    "rslora": ({"use_rslora": True},),
    "dora": ({"use_dora": True, "target_modules": list(ALL)},),
    "dora, rslora, patterns": ({**PATTERNS, "use_dora": True, "use_rslora": True},),
    "layers": ({"layers_to_transform": [0, 2]},),
    "layers, pattern": ({"layers_to_transform": [2], "layers_pattern": "layers"},),
    "layers, patterns": ({"layers_to_transform": [1, 2], "layers_pattern": ["h", "model.layers"]},),
    "one layer": ({"layers_to_transform": 1},),
    "layer 0, pattern": ({"layers_to_transform": 0, "layers_pattern": ["layers"]},),
    "dora, layers": ({"layers_to_transform": [1], "use_dora": True},),
    "excluded": ({"target_modules": "all-linear", "exclude_modules": ["o_proj", "model.layers.1.mlp.up_proj"]},),
    "excluded by regex": ({"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.0\.mlp.*"},),
    "full names": ({"target_modules": ["model.layers.0.self_attn.q_proj", "layers.2.mlp.down_proj", "k_proj"]},),
    "full name beside layers": (
        {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "layers_to_transform": [1]},
    ),
    "gaussian": ({"init_lora_weights": "gaussian"},),
    "orthogonal": ({"init_lora_weights": "orthogonal"},),
    "qwen2": ({"target_modules": "all-linear"}, "Qwen2"),
    "qwen2, dora": ({"use_dora": True}, "Qwen2"),
    "head": ({}, "Llama", HEAD),
    "head, dora, rslora": ({"use_dora": True, "use_rslora": True, "target_modules": "all-linear"}, "Llama", HEAD),
    "head, qwen2": ({"target_modules": list(ALL)}, "Qwen2", HEAD),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_adapter_made_by_peft_gives_its_logits_here(
    option, bases, made_by_peft, read, assert_same_logits, theirs, tmp_path
):
    fields, *which = OPTIONS[option]
    folder, base = bases(*which)
    model = made_by_peft(base, **fields)
    model.save_pretrained(tmp_path)
    assert_same_logits(read(tmp_path, folder)[1], model)
    assert np.abs(theirs(model) - theirs(base)).max() > 0.1  # else a lost adapter would go unseen


SPECS = {
    "default": LoraSpec(4, 6.0),
    "all-linear": LoraSpec(3, 6.0, targets=("all-linear",)),
    "regex": LoraSpec(3, 6.0, targets=(r".*layers\.[02]\.mlp.*", "self_attn.v_proj")),
    "patterns": LoraSpec(
        4,
        6.0,
        targets=("q_proj", "v_proj", "down_proj"),
        ranks=(("q_proj", 2), ("model.layers.1.self_attn.v_proj", 7)),
        alphas=(("down_proj", 3.5), ("model.layers.2.self_attn.q_proj", 9.0), ("v_proj", 8.0)),
    ),
    "rslora": LoraSpec(4, 6.0, rslora=True),
    "dora": LoraSpec(4, 6.0, targets=ALL, dora=True),
    "layers": LoraSpec(4, 6.0, layers=(0, 2)),
    "one layer": LoraSpec(4, 6.0, layers=(1,), dora=True),
    "pissa": LoraSpec(4, 6.0, init="pissa"),
    "pissa_niter_16": LoraSpec(4, 6.0, init="pissa_niter_16", layers=(0, 1)),
    "pissa, rslora, patterns": LoraSpec(4, 6.0, init="pissa", rslora=True, ranks=(("q_proj", 2),)),
    "pissa, dora": LoraSpec(4, 6.0, init="pissa", dora=True),
}
SPECS["dora, rslora, patterns"] = LoraSpec(
    **{**vars(SPECS["patterns"]), "dora": True, "rslora": True, "dropout": 0.1}  # dropout: in training alone
)


@pytest.fixture(scope="session")
def made_here(assembled, with_values):
    """(the model with a fresh adapter, changed as training would, its parameters by path):
    `made_here(folder, spec, labels)`."""

    def make(folder, spec, labels=0):
        model, rng = assembled(folder, spec, labels), np.random.default_rng(3)
        values = {}
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            name = partition.partition_of(path)
            if name == "base":
                continue
            value = np.asarray(leaf[...])
            if path[-1] == "magnitude":
                value = value * (1 + 0.5 * rng.random(value.shape))
            elif not name.startswith("initial"):
                # Where layers differ in rank, a column that a layer lacks is zero in both, and training leaves it so.
                other = value if path[-1] == "a" else values.get((*path[:-1], "a"), np.ones((1, 1, 1))).mT
                there = np.any(other, axis=-2 if path[-1] == "a" else -1, keepdims=True)
                value = value + 0.1 * rng.normal(size=value.shape) * (there if path[0] != "head" else 1.0)
            values[path] = value.astype(np.float32)
        return with_values(model, values), values

    return make


def export(values, spec, output):
    found = ours.from_parameters(values, "clinical", spec, {})
    head = values.get(("head", "kernel"))
    ours.write(output, ours.Adapter(found.spec, found.layers, found.weights, head), "base")


CASES = [*((option,) for option in SPECS), ("all-linear", "Qwen2")]
CASES += [("default", "Llama", HEAD), ("dora, rslora, patterns", "Llama", HEAD)]


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_adapter_made_here_gives_its_logits_in_peft(
    case, bases, made_here, load_in_peft, assert_same_logits, logits, theirs, tmp_path
):
    option, *which = case
    folder, base = bases(*which)
    model, values = made_here(folder, SPECS[option], CLASSES if HEAD in which else 0)
    export(values, SPECS[option], tmp_path)
    assert_same_logits(model, load_in_peft(tmp_path, base))
    assert np.abs(logits(model) - theirs(base)).max() > 0.1


def our_gradients(model, kind, spec, rows):
    """By full name of the layer and leaf, and "head"."""
    objective = Objective(kind, ("clinical",))
    trained = ("clinical",) if kind == "lm" else ("clinical", "head")
    definition, params, frozen = partition.split(model, trained)
    loss = jax.jit(jax.value_and_grad(lambda p, rows: objective.loss(nnx.merge(definition, p, frozen), rows)))
    value, gradients = loss(params, rows)
    values = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
    by_layer = ours.from_parameters(values, "clinical", spec, {}).weights
    found = {f"{module}.{leaf}": x for module, here in by_layer.items() for leaf, x in here.items()}
    stacked = sum(float(np.square(x).sum()) for path, x in values.items() if path[0] != "head")
    apart = sum(float(np.square(x).sum()) for x in found.values())
    assert stacked == pytest.approx(apart, rel=1e-5)  # what pads the ranks has no gradient
    return float(value), found | ({"head": values["head", "kernel"]} if kind != "lm" else {})


def their_gradients(model, kind, rows, inputs, named):
    """The same of PEFT's model."""
    found = model(**inputs(rows)).logits
    if kind == "lm":
        wanted = torch.tensor(np.where(rows["segments"], rows["tokens"], -100), dtype=torch.long)[:, 1:]
        loss = torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), wanted.flatten())
    else:
        loss = torch.nn.functional.cross_entropy(found, torch.tensor(rows["labels"][:, 0], dtype=torch.long))
    loss.backward()
    return float(loss.detach()), {key: weight.grad.numpy().T for key, weight in named(model)}


@pytest.mark.parametrize("kind", ["lm", "multiclass"])
@pytest.mark.parametrize("option", ["all-linear", "rslora", "dora", "patterns", "dora, rslora, patterns", "one layer"])
def test_gradients_are_those_of_peft(option, kind, bases, made_here, load_in_peft, batch, inputs, named, tmp_path):
    folder, base = bases() if kind == "lm" else bases("Llama", HEAD)
    spec = LoraSpec(**{**vars(SPECS[option]), "dropout": 0.0})
    model, values = made_here(folder, spec, 0 if kind == "lm" else CLASSES)
    export(values, spec, tmp_path)
    loss, found = our_gradients(model, kind, spec, batch("right"))
    peft_model = load_in_peft(tmp_path, base, is_trainable=True)
    wanted_loss, wanted = their_gradients(peft_model, kind, batch("right"), inputs, named)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert set(found) == set(wanted)
    worst = max(np.linalg.norm(found[key] - wanted[key]) / np.linalg.norm(wanted[key]) for key in wanted)
    print(f"largest relative difference {float(worst):.1e}")
    assert worst <= 1e-4
