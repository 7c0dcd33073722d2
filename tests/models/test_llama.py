"""LLaMA against transformers and PEFT on real weights, and against itself in every way of computing the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from jaxlora import partition
from jaxlora.config import default
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.remat import REMAT
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh
from jaxlora.train.objective import Objective

LENGTH = 48
SPECS = {"clinical": LoraSpec(3, 6.0), "downstream": LoraSpec(2, 2.0, targets=("v_proj", "down_proj"))}
ACTIVE = ("clinical", "downstream")


def padded(ids, left=False):
    """(tokens, segments, positions) of one note in a row of LENGTH."""
    room = (LENGTH - len(ids), 0) if left else (0, LENGTH - len(ids))
    return tuple(np.pad(x, room) for x in (ids, np.ones(len(ids), int), np.arange(len(ids))))


@pytest.fixture(scope="module")
def golden(shared_data):
    """The folder of the real model, and its goldens by name."""
    folder = shared_data / "tinyllama260k"
    return folder, lambda name: json.loads((folder / f"golden_{name}.json").read_text())


@pytest.fixture(scope="module")
def golden_base(golden):
    """Logits of the real model, `run(tokens, segments, positions)`, compiled once."""
    config = default()
    config.base = str(golden[0] / "hf")
    definition, state = nnx.split(assemble(config, 0, make_mesh(1, 1)))

    @jax.jit
    def run(*row):
        model = nnx.merge(definition, state)
        return model.logits(model(*(x[None] for x in row)))[0]

    return run


def test_logits_and_likelihood_are_those_of_transformers(golden, golden_base):
    wanted = golden[1]("base")
    ids = wanted["ids"]
    logits = np.asarray(golden_base(*padded(ids)), np.float64)
    np.testing.assert_allclose(logits[len(ids) - 1], wanted["last_logits_float64"], atol=1e-4)
    log = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    nll = -np.mean([log[i, ids[i + 1]] for i in range(len(ids) - 1)])
    assert nll == pytest.approx(wanted["mean_nll"], abs=1e-5)


def rows_of(notes, packed: bool):
    """A batch of the notes, all in the first row or each in its own; the shapes are the same."""
    batch = {name: np.zeros((4, 32), np.int32) for name in ("tokens", "segments", "positions")}
    batch["notes"], batch["labels"] = np.zeros((4, 4), np.int32), np.zeros((4, 4), np.int32)
    at = 0
    for i, ids in enumerate(notes):
        row, segment = (0, i) if packed else (i, 0)
        here = slice(at, at + len(ids)) if packed else slice(0, len(ids))
        batch["tokens"][row, here], batch["segments"][row, here] = ids, segment + 1
        batch["positions"][row, here] = np.arange(len(ids))
        batch["notes"][row, segment], batch["labels"][row, segment] = i + 1, i % 3
        at += len(ids)
    return batch


NOTES = [np.random.default_rng(n).integers(1, 32, n) for n in (5, 9, 3, 12)]


def loss_and_gradients(model, objective):
    """`run(batch)`, jitted: the loss, and its gradient by path towards what the objective trains."""
    trained = ("clinical", "downstream") if objective.kind == "lm" else ("clinical", "downstream", "head")
    definition, params, frozen = partition.split(model, trained)

    @jax.jit
    def run(params, batch):
        return jax.value_and_grad(lambda p: objective.loss(nnx.merge(definition, p, frozen), batch))(params)

    def by_path(batch):
        loss, gradients = run(params, batch)
        return float(loss), {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}

    return by_path


@pytest.fixture(scope="module")
def plain(random_llama):
    """The language-model loss of two layers, scanned, with everything saved."""
    return loss_and_gradients(random_llama(SPECS, layers=2), Objective("lm", ACTIVE))


def assert_packing_changes_nothing(run):
    loss, gradients = run(rows_of(NOTES, packed=True))
    alone, gradients_alone = run(rows_of(NOTES, packed=False))
    assert loss == pytest.approx(alone, rel=1e-5)
    for path, gradient in gradients.items():
        assert np.any(gradient)
        atol = 1e-4 * np.abs(gradient).max()
        np.testing.assert_allclose(gradient, gradients_alone[path], rtol=1e-4, atol=atol, err_msg=str(path))


def test_packed_notes_train_the_language_model_as_notes_alone(plain):
    assert_packing_changes_nothing(plain)


def test_packed_notes_train_the_classifier_as_notes_alone(random_llama):
    assert_packing_changes_nothing(loss_and_gradients(random_llama(SPECS, 3), Objective("multiclass", ACTIVE)))


@pytest.mark.parametrize(
    "way", [*({"remat": policy} for policy in REMAT if policy != "none"), {"unroll": True}], ids=str
)
def test_every_way_of_saving_memory_gives_the_same_gradients(random_llama, plain, way):
    model = random_llama(SPECS, layers=2, **way)
    batch = rows_of(NOTES, packed=True)
    loss, gradients = loss_and_gradients(model, Objective("lm", ACTIVE))(batch)
    wanted, wanted_gradients = plain(batch)
    assert loss == pytest.approx(wanted, rel=1e-6)
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted_gradients[path], rtol=1e-4, atol=1e-6, err_msg=str(path))


def products(jaxpr) -> int:
    """How many matrix products a program has, those of its inner programs among them."""
    inner = (part for equation in jaxpr.eqns for part in jaxprs_in_params(equation.params))
    return sum(map(products, inner)) + sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)


def test_every_level_of_remat_computes_again_what_it_says(random_llama):
    batch, objective, counts = rows_of(NOTES, packed=True), Objective("lm", ("clinical",)), {}
    for remat in REMAT:
        model = random_llama({"clinical": LoraSpec(3, 6.0)}, remat=remat)
        definition, params, frozen = partition.split(model, ["clinical"])

        def loss(params, definition=definition, frozen=frozen):
            return objective.loss(nnx.merge(definition, params, frozen), batch)

        counts[remat] = products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    assert list(counts) == ["full", "offload", "save_qkv", "save_dots", "none"]
    projections, attention, adapters, rest = 3, 2, 2, 3  # q k v; scores and values; x A of q and v; o, gate, up
    assert counts["none"] == counts["save_dots"]
    assert counts["offload"] == counts["save_qkv"] == counts["none"] + rest + adapters
    assert counts["full"] == counts["save_qkv"] + projections + attention + adapters


def test_bfloat16_computes_in_bfloat16_and_stays_close(random_llama):
    model = random_llama(SPECS)
    definition, state = nnx.split(model)
    half_definition, half_state = nnx.split(random_llama(SPECS, dtype="bfloat16"))
    assert half_state["blocks"]["q_proj"]["kernel"][...].dtype == jnp.bfloat16
    assert half_state["blocks"]["q_proj"]["adapters"]["clinical"]["a"][...].dtype == jnp.float32
    batch = rows_of(NOTES, packed=True)
    row = [batch[name] for name in ("tokens", "segments", "positions")]
    hidden = jax.jit(lambda s: nnx.merge(definition, s)(*row, ACTIVE))(state)
    hidden_half = jax.jit(lambda s: nnx.merge(half_definition, s)(*row, ACTIVE))(half_state)
    assert hidden_half.dtype == jnp.bfloat16
    real = batch["segments"] > 0
    error = np.asarray(hidden_half, np.float32)[real] - np.asarray(hidden)[real]
    assert 0 < np.sqrt(np.mean(error**2)) < 0.03 * np.std(hidden)


def test_dropout_is_decided_by_the_key(random_llama):
    spec = {"clinical": LoraSpec(3, 6.0, dropout=0.5)}
    definition, state = nnx.split(random_llama(spec))
    row = [np.ones((1, 8), np.int32)] * 2 + [np.arange(8)[None]]
    run = jax.jit(lambda key: nnx.merge(definition, state)(*row, ("clinical",), key))
    first, again, other = (np.asarray(run(jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
