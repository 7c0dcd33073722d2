"""BERT against itself: packed notes, both directions, dropout, remat, meshes' axes, and its pooling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxlora import partition
from jaxlora.models.bert import Bert, BertConfig
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train.mesh import shardings
from jaxlora.train.objective import Objective

TINY = BertConfig(vocab=32, embed=16, mlp=24, layers=2, heads=4, positions=16)
SPECS = {"downstream": LoraSpec(2, 4.0, targets=("query", "attention.output.dense"))}
LENGTHS = (5, 3, 6)


@pytest.fixture(scope="module")
def model():
    """Of random weights, no bias and no B zero."""
    model = Bert(TINY, SPECS, 3, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = nnx.state(model)
    for path, leaf in nnx.to_flat_state(state):
        if path[-1] in ("bias", "b", "type") or path[0] == "embedding":
            leaf.set_value(leaf[...] + rng.normal(scale=0.3, size=leaf.shape).astype(np.float32))
    nnx.update(model, state)
    return model


@pytest.fixture(scope="module")
def rows():
    """(tokens, segments, positions) of three notes in a row with two places of padding."""
    rng = np.random.default_rng(1)
    tokens = np.concatenate([*(rng.integers(1, 32, n) for n in LENGTHS), [0, 0]])
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 2])
    return tuple(np.asarray(x)[None] for x in (tokens, segments, [*(i for n in LENGTHS for i in range(n)), 0, 0]))


@pytest.fixture(scope="module")
def run(model):
    @jax.jit
    def hidden(tokens, segments, positions):
        return model(tokens, segments, positions, ("downstream",))

    return lambda *rows: np.asarray(hidden(*rows))


def test_a_packed_note_is_what_it_is_alone(run, rows):
    whole = run(*rows)[0]
    for number in (1, 2, 3):
        here = rows[1][0] == number
        kept = here.sum()
        alone = [np.zeros_like(x) for x in rows]
        for x, given in zip(alone, rows, strict=True):
            x[0, :kept] = np.where(given is rows[1], 1, given[0, here])
        np.testing.assert_allclose(run(*alone)[0, :kept], whole[here], atol=1e-5)


def test_attention_goes_both_ways_and_not_over_the_border(run, rows):
    tokens = rows[0].copy()
    tokens[0, LENGTHS[0] - 1] = (tokens[0, LENGTHS[0] - 1] + 1) % 32
    moved = np.abs(run(tokens, *rows[1:]) - run(*rows)).max(axis=-1)[0] > 1e-6
    assert moved.tolist() == (rows[1][0] == 1).tolist()


def test_the_first_token_of_each_segment_is_pooled(model, run, rows):
    hidden, firsts = run(*rows), [0, 5, 8]
    wanted = np.tanh(hidden[0, firsts] @ model.pooler.kernel[...] + model.pooler.bias[...])
    np.testing.assert_allclose(model.pooled(jnp.asarray(hidden), rows[1], 3)[0], wanted, atol=1e-5)


def test_dropout_is_in_training_alone_and_follows_the_key(model, rows):
    """Each kind of it by itself: where all others are 0, the result still depends on the key, and on nothing else."""
    batch = dict(zip(("tokens", "segments", "positions"), rows, strict=True)) | {"notes": np.asarray([[1, 2, 3]])}
    objective, rates = Objective("multiclass", ("downstream",)), ("dropout", "attention_dropout", "head_dropout")
    for kind in rates:
        shape = dataclasses.replace(TINY, **{rate: 0.3 * (rate == kind) for rate in rates})
        other = Bert(shape, SPECS, 3, rngs=nnx.Rngs(0))
        nnx.update(other, nnx.state(model))
        logits = jax.jit(lambda key, other=other: objective.note_logits(other, batch, key))
        first, again, second = (np.asarray(logits(jax.random.key(seed))) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - second).max() > 1e-3, kind
        np.testing.assert_allclose(objective.note_logits(other, batch), objective.note_logits(model, batch), atol=1e-5)


def test_gradients_do_not_depend_on_what_is_saved(model, rows):
    batch = dict(zip(("tokens", "segments", "positions"), rows, strict=True))
    batch |= {"notes": np.asarray([[1, 2, 3]]), "labels": np.asarray([[0, 2, 1]])}

    def gradients(remat):
        other = Bert(dataclasses.replace(TINY, remat=remat), SPECS, 3, rngs=nnx.Rngs(0))
        nnx.update(other, nnx.state(model))
        definition, params, frozen = partition.split(other, ("downstream", "head"))
        objective = Objective("multiclass", ("downstream",))
        return jax.jit(jax.grad(lambda p: objective.loss(nnx.merge(definition, p, frozen), batch, jax.random.key(0))))(
            params
        )

    wanted = gradients("none")
    for remat in ("full", "save_qkv"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients(remat), wanted)


def test_names_decide_its_partitions(model):
    assert partition.partitions(model) == ("adapter/downstream", "base", "head")
    train = partition.split(model, ("base",))[1]
    assert {path[0] for path, _ in nnx.to_flat_state(train)} == {"embedding", "blocks", "pooler"}


def test_kernels_are_cut_and_adapters_follow_them(model):
    placed = shardings(AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor")), nnx.state(model))
    specs = {".".join(path): sharding.spec for path, sharding in placed.items()}
    assert specs["embedding.word"] == P("tensor", "fsdp")
    assert specs["blocks.query.kernel"] == P(None, "fsdp", "tensor")
    assert specs["blocks.query.bias"] == P(None, "tensor")
    assert specs["blocks.query.adapters.downstream.b"] == P(None, None, "tensor")
    assert specs["blocks.output.kernel"] == P(None, "tensor", "fsdp")
    assert not any(specs["blocks.output_norm.scale"]) and not any(specs["head.bias"])


def test_bfloat16_stays_close(model, run, rows):
    shape = dataclasses.replace(TINY, dtype="bfloat16")
    other = Bert(shape, SPECS, 3, rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(model))
    hidden = jax.jit(lambda *rows: other(*rows, ("downstream",)))(*rows)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(hidden, np.float32), run(*rows), atol=0.15)
