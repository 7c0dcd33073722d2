"""(IA)^3 and AdaLoRA against PEFT itself: logits, gradients, counts, and which triplets AdaLoRA leaves."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch  # noqa: E402
import transformers  # noqa: E402
from flax import nnx  # noqa: E402
from peft import AdaLoraConfig, IA3Config, get_peft_model  # noqa: E402

from jaxlora import partition  # noqa: E402
from jaxlora.config import adalora, adapter, default, ia3  # noqa: E402
from jaxlora.models.llama import Llama, LlamaConfig  # noqa: E402
from jaxlora.models.lora_spec import MODULES  # noqa: E402
from jaxlora.models.techniques import spec_of  # noqa: E402
from jaxlora.train.allocation import budgets, orthogonality  # noqa: E402
from jaxlora.train.assemble import assemble  # noqa: E402
from jaxlora.train.mesh import make_mesh  # noqa: E402
from jaxlora.train.objective import Objective  # noqa: E402
from jaxlora.train.optimizer import make_optimizer, schedule  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # Advice of PEFT and transformers.
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")),
]
UPDATES = 24
# name: our description, PEFT's, and the family; both techniques also where only some layers are targeted.
CASES = {
    "IA3": (ia3(), IA3Config(task_type="CAUSAL_LM"), "Llama"),
    "IA3 with biases": (
        ia3(),
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
        "Qwen2",
    ),
    "IA3 of some layers": (
        ia3((".*layers.[02].self_attn.(q|o)_proj", "up_proj"), ("up_proj",)),
        IA3Config(
            task_type="CAUSAL_LM",
            target_modules=r".*layers.[02].self_attn.(q|o)_proj|.*up_proj",
            feedforward_modules=r".*up_proj",
        ),
        "Llama",
    ),
    "AdaLoRA": (
        adalora(4, 2, 6),
        AdaLoraConfig(task_type="CAUSAL_LM", init_r=4, target_r=2, lora_alpha=6, total_step=UPDATES),
        "Llama",
    ),
    "AdaLoRA of some layers": (
        adalora(5, 1, 3, targets=("all-linear",), layers=(0, 2), start=3, end=5, interval=3, beta1=0.7, beta2=0.8),
        AdaLoraConfig(
            task_type="CAUSAL_LM",
            init_r=5,
            target_r=1,
            lora_alpha=3,
            target_modules=list(MODULES),
            layers_to_transform=[0, 2],
            tinit=3,
            tfinal=5,
            deltaT=3,
            beta1=0.7,
            beta2=0.8,
            total_step=UPDATES,
        ),
        "Qwen2",
    ),
}
LEAVES = {"lora_A": "a", "lora_E": "e", "lora_B": "b"}


def theirs_of(base, peft_config):
    """PEFT's model, every parameter that it trains away from where it starts."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(peft_config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def place_of(name, shape):
    """(path of ours, layer) of a parameter of PEFT's."""
    module, _, leaf = name.removeprefix("base_model.model.").rpartition(".")[0].rpartition(".")
    layer, linear = int(module.split(".")[2]), module.split(".")[-1]
    if leaf == "ia3_l":
        leaf = "gain_in" if shape[0] == 1 else "gain_out"
    return ("blocks", linear, "adapters", "clinical", LEAVES.get(leaf, leaf)), layer


def ours_of(folder, ours, theirs, what=lambda weight: weight):
    """Our model, with an adapter whose parameters are PEFT's."""
    config = default()
    config.base, config.active, config.trainable = str(folder), ("clinical",), ("clinical",)
    config.adapters["clinical"] = ours
    model = assemble(config, 0, make_mesh(1, 1))
    nnx.update(model, with_theirs(nnx.state(model), theirs, lambda weight: weight))
    return model


def with_theirs(state, theirs, what):
    """The adapter's part of a state with `what(weight)` of PEFT's in the place of ours."""
    values = {path: np.array(leaf[...]) for path, leaf in partition.items(state, ["adapter/clinical"])}
    for name, weight in theirs.named_parameters():
        if weight.requires_grad:
            path, layer = place_of(name, weight.shape)
            value = what(weight).detach().numpy()
            values[path][layer] = value.reshape(values[path][layer].T.shape).T
    return nnx.from_flat_state(
        [(p, leaf.replace(jnp.asarray(values[p]))) for p, leaf in partition.items(state, ["adapter/clinical"])]
    )


def gradients_of(params, theirs):
    """PEFT's gradients in the form of our parameters, zero in a layer without the adapter."""
    return with_theirs(jax.tree.map(jnp.zeros_like, params), theirs, lambda weight: weight.grad)


def their_loss(model, rows, inputs):
    wanted = torch.tensor(np.where(rows["segments"], rows["tokens"], -100), dtype=torch.long)
    return model(**inputs(rows), labels=wanted).loss


def their_gradients(model, rows, inputs, penalty):
    """Fills in the gradients of PEFT's model, with or without AdaLoRA's penalty, which is in its loss."""
    model.zero_grad()
    peft_config = model.peft_config["default"]
    if weight := getattr(peft_config, "orth_reg_weight", 0.0):
        peft_config.orth_reg_weight = weight if penalty else 0.0
    loss = their_loss(model, rows, inputs)
    loss.backward()
    if weight:
        peft_config.orth_reg_weight = weight
    return float(loss.detach())


def assert_close(found, wanted):
    found, wanted = (dict(nnx.to_flat_state(state)) for state in (found, wanted))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        largest = float(jnp.abs(leaf[...]).max())
        assert largest > 0, path
        difference = float(jnp.abs(found[path][...] - leaf[...]).max())
        assert difference <= 1e-4 * max(largest, 1.0), (path, difference)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_peft(case, bases, batch, inputs, logits, theirs):
    ours, peft_config, family = CASES[case]
    folder, base = bases(family)
    peft_model = theirs_of(base, peft_config)
    model = ours_of(folder, ours, peft_model)
    wanted = theirs(peft_model)
    np.testing.assert_allclose(logits(model), wanted, atol=1e-4, rtol=0)
    assert np.abs(wanted - theirs(base)).max() > 0.1

    rows, objective = batch("right"), Objective("lm", ("clinical",))
    definition, params, frozen = partition.split(model, ["clinical"])
    differentiated = jax.jit(jax.value_and_grad(lambda p: objective.loss(nnx.merge(definition, p, frozen), rows)))
    loss, gradients = differentiated(params)
    assert float(loss) == pytest.approx(their_gradients(peft_model, rows, inputs, penalty=False), rel=1e-5)
    assert_close(gradients, gradients_of(params, peft_model))
    for budget in budgets(model, params, UPDATES):
        penalised = orthogonality(budget).update(gradients, optax.EmptyState(), params)[0]
        their_gradients(peft_model, rows, inputs, penalty=True)
        assert_close(penalised, gradients_of(params, peft_model))


@pytest.mark.parametrize("case, clip", [("AdaLoRA", 0.0), ("AdaLoRA of some layers", 0.5)])
def test_every_update_leaves_the_triplets_that_peft_leaves(case, clip, bases, batch, inputs):
    """PyTorch's loop of PEFT's guide beside our optimizer, which is given the gradients of the task."""
    ours, peft_config, family = CASES[case]
    folder, base = bases(family)
    torch.manual_seed(2)
    peft_model = get_peft_model(copy.deepcopy(base), copy.deepcopy(peft_config))
    model = ours_of(folder, ours, peft_model)
    _, params, _ = partition.split(model, ["clinical"])
    optimizer = make_optimizer(optax.constant_schedule(0.02), 0.01, clip, budgets=budgets(model, params, UPDATES))
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    trained = [weight for weight in peft_model.parameters() if weight.requires_grad]
    adam = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.01)
    left, rng = [], np.random.default_rng(0)
    for update in range(1, UPDATES + 1):
        rows = batch("right")
        rows["tokens"] = np.where(rows["segments"], rng.integers(3, 400, rows["tokens"].shape), 0).astype(np.int32)
        their_gradients(peft_model, rows, inputs, penalty=False)
        gradients = gradients_of(params, peft_model)
        their_gradients(peft_model, rows, inputs, penalty=True)
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        adam.step()
        peft_model.base_model.update_and_allocate(update)
        moved, state = step(gradients, state, params)
        params = optax.apply_updates(params, moved)
        wanted = with_theirs(params, peft_model, lambda weight: weight)
        of = {
            p: (np.asarray(leaf[...]), np.asarray(wanted_leaf[...]))
            for (p, leaf), (_, wanted_leaf) in zip(nnx.to_flat_state(params), nnx.to_flat_state(wanted), strict=True)
        }
        for path, (found, expected) in of.items():
            if path[-1] == "e":
                np.testing.assert_array_equal(found == 0, expected == 0, err_msg=f"{update} {path}")
            np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=f"{update} {path}")
        left.append(sum(int((found != 0).sum()) for path, (found, _) in of.items() if path[-1] == "e"))
    whole = sum(sum(r) for budget in budgets(model, params, UPDATES) for r in budget.ranks.values())
    assert left[0] >= whole - 2 and left[-1] == peft_model.base_model.rankallocator.target_bgt
    assert len(set(left)) > 4


@pytest.mark.parametrize("accumulate, warmup", [(1, 0.06), (4, 0.06), (4, 0.0), (10, 0.06)])
def test_the_paper_schedule_is_the_one_of_transformers_as_it_was_called(accumulate, warmup):
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.AdamW([weight], lr=3e-4)
    theirs = transformers.get_linear_schedule_with_warmup(adam, warmup, 30 * accumulate)
    wanted = []
    for _ in range(30):
        wanted.append(adam.param_groups[0]["lr"])
        adam.step()
        theirs.step()
    rate = schedule(3e-4, 30, warmup, "paper", accumulate)
    np.testing.assert_allclose([float(rate(i)) for i in range(30)], wanted, rtol=1e-6, atol=1e-12)


SIZES = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)


@pytest.mark.parametrize(
    "ours, peft_config, printed",
    [
        (ia3(), IA3Config(task_type="CAUSAL_LM"), 614_400),
        (adalora(), AdaLoraConfig(task_type="CAUSAL_LM", total_step=10), 6_292_224),
        (adapter(16, 32), None, 8_388_608),
    ],
    ids=["IA3", "AdaLoRA", "LoRA"],
)
def test_counts_of_seven_billion_are_those_of_peft(ours, peft_config, printed):
    spec = spec_of({field: value for field, value in ours.items() if field != "workdir"})
    shape = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128)
    model = nnx.eval_shape(lambda: Llama(shape, {"clinical": spec}, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(leaf.shape)) for _, leaf in partition.items(nnx.state(model), ["adapter/clinical"]))
    assert count == printed
    if peft_config is not None:
        with torch.device("meta"):
            base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
            assert count == get_peft_model(base, peft_config).get_nb_trainable_parameters()[0]
