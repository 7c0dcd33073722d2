"""Names decide what is trained, and the split is what an optax mask would be."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.errors import UserError
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train.mesh import make_mesh
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import init_state, make_train_step

SPECS = {"clinical": LoraSpec(3, 6.0), "downstream": LoraSpec(2, 2.0)}


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(SPECS, 3)


def leaves(state) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}


def test_every_parameter_is_in_exactly_one_partition(model):
    names = partition.partitions(model)
    assert names == ("adapter/clinical", "adapter/downstream", "base", "head")
    state = nnx.state(model)
    found = [path for name in names for path in leaves(partition.select(state, [name]))]
    assert len(found) == len(set(found)) and set(found) == set(leaves(state))


def test_partitions_hold_what_their_names_say(model):
    state = nnx.state(model)
    assert list(leaves(partition.select(state, ["head"]))) == [("head", "kernel")]
    assert {path[-2:] for path in leaves(partition.select(state, ["adapter/clinical"]))} == {
        ("clinical", "a"),
        ("clinical", "b"),
    }
    assert ("blocks", "q_proj", "kernel") in leaves(partition.select(state, ["base"]))


@pytest.mark.parametrize(
    "patterns, chosen",
    [
        (["clinical"], {"adapter/clinical"}),
        (["adapter/clinical", "head"], {"adapter/clinical", "head"}),
        (["adapter/*"], {"adapter/clinical", "adapter/downstream"}),
        (["down*"], {"adapter/downstream"}),
        (["base"], {"base"}),
        (["head", "head"], {"head"}),
    ],
)
def test_patterns(model, patterns, chosen):
    assert partition.trainable_partitions(model, patterns) == chosen


def test_pattern_that_matches_nothing_names_the_nearest(model):
    with pytest.raises(UserError, match="'adapter/clincal' matches no partition; did you mean 'adapter/clinical'"):
        partition.trainable_partitions(model, ["head", "adapter/clincal"])
    with pytest.raises(UserError, match="'x' matches no partition; valid: adapter/clinical, .*, base, head"):
        partition.trainable_partitions(model, ["x"])


def test_training_nothing_is_an_error(model):
    with pytest.raises(UserError, match="config.trainable is empty: name what is to be trained, of adapter/clinical,"):
        partition.trainable_partitions(model, [])


def test_split_and_mask_choose_the_same_and_merge_gives_the_model_back(model):
    definition, train, frozen = partition.split(model, ["clinical", "head"])
    flags = leaves(partition.mask(model, ["clinical", "head"]))
    assert {path for path, flag in flags.items() if flag} == set(leaves(train))
    assert {path for path, flag in flags.items() if not flag} == set(leaves(frozen))
    merged = leaves(nnx.state(nnx.merge(definition, train, frozen)))
    for path, value in leaves(nnx.state(model)).items():
        np.testing.assert_array_equal(merged[path], value)


def test_table_counts_every_parameter(model):
    lines = partition.table(model, ["downstream"], ["downstream", "head"]).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    embed, width, kv_width, mlp, vocab = 16, 16, 8, 24, 32
    base = vocab * embed + 2 * embed * (width + kv_width) + 3 * embed * mlp + 3 * embed
    assert rows == {
        "base": [f"{base:,}", "yes", "no"],
        "adapter/clinical": [str(3 * (2 * embed + width + kv_width)), "no", "no"],
        "adapter/downstream": [str(2 * (2 * embed + width + kv_width)), "yes", "yes"],
        "head": [str(embed * 3), "yes", "yes"],
    }


def test_training_the_split_equals_training_under_an_optax_mask(model, packed_batch):
    """Same numbers; frozen weights keep their bits; only what is trained has optimizer state."""
    trainable = ["downstream", "head"]
    mesh, objective = make_mesh(1, 1), Objective("multiclass", ("clinical", "downstream"))
    optimizer = make_optimizer(optax.constant_schedule(1e-2), weight_decay=0.1, clip=1.0)
    before = leaves(nnx.state(model))
    flags = partition.mask(model, trainable)

    definition, whole = nnx.split(model)
    labels = jax.tree.map(lambda flag: "train" if flag else "freeze", flags)
    masked = optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)

    @jax.jit
    def masked_step(params, state):
        gradients = jax.grad(lambda p: objective.loss(nnx.merge(definition, p), packed_batch))(params)
        updates, state = masked.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    masked_state = masked.init(whole)
    for _ in range(3):
        whole, masked_state = masked_step(whole, masked_state)

    definition, params, frozen = partition.split(model, trainable)
    params = jax.tree.map(lambda x: x.copy(), params)  # the step takes its state over
    state = init_state(params, optimizer, mesh)
    moments = optax.tree_utils.tree_get(state.optimizer, "mu")
    assert set(leaves(moments)) == {path for path, flag in leaves(flags).items() if flag}
    step = make_train_step(definition, optimizer, objective, False, state, mesh)
    for i in range(3):
        state, _ = step(state, frozen, packed_batch, jax.random.key(i))

    after, after_masked = leaves(nnx.merge_state(state.params, frozen)), leaves(whole)
    for path, flag in leaves(flags).items():
        if flag:
            assert np.abs(after[path] - before[path]).max() > 1e-3
            np.testing.assert_allclose(after[path], after_masked[path], atol=1e-6)
        else:
            np.testing.assert_array_equal(after[path], before[path])
            np.testing.assert_array_equal(after_masked[path], before[path])


def test_mask_fits_optax_masked(model):
    state = nnx.state(model)
    moments = optax.masked(optax.trace(0.9), partition.mask(model, ["head"])).init(state)
    assert [x.shape for x in jax.tree.leaves(moments)] == [(16, 3)]
