"""The update of several members is the update of each."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.config import adapter, default
from jaxlora.train import together
from jaxlora.train.assemble import adapter_specs
from jaxlora.train.mesh import make_mesh, put_batch
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import init_state, make_train_step
from jaxlora.train.together import Clock, Together, make_settings, template_config


def make_config(seed, accumulate, technique, **fields):
    config = default()
    config.adapters.notes = adapter(targets=("q_proj", "down_proj"), **fields, **technique)
    config.active, config.trainable = ("notes",), ("notes", "head")
    config.seed, config.accumulate, config.learning_rate = seed, accumulate, 0.01 * (seed + 1)
    return config


@pytest.mark.parametrize(
    ("in_turn", "accumulate", "technique"),
    [
        (False, 1, {"dora": True}),
        (False, 2, {"rslora": True, "init": "pissa", "alphas": (("q_proj", 3),)}),
        (True, 1, {}),
    ],
)
def test_members_change_as_alone(random_llama, packed_batch, monkeypatch, in_turn, accumulate, technique):
    monkeypatch.setattr(together, "_in_turn", lambda mesh: in_turn)
    configs = [
        make_config(0, accumulate, technique, rank=2, alpha=4, dropout=0.5),
        make_config(1, accumulate, technique, rank=3, alpha=1),
    ]
    configs[1].clip, configs[0].b_rate, configs[1].weight_decay = 0.01, 4.0, 0.3
    kinds, labels, weights = ("multiclass", "binary"), (3, 2), ((0.5, 2.0, 1.0), ())
    mesh, specs = make_mesh(1, 1), [adapter_specs(config, 1) for config in configs]
    template = random_llama(adapter_specs(template_config(configs), 1), max(labels))
    base = partition.select(nnx.state(template), ["base"])
    batches = [packed_batch, {**packed_batch, "tokens": packed_batch["tokens"][::-1].copy()}]

    states, frozen, expected = [], [], []
    for k, (config, batch) in enumerate(zip(configs, batches, strict=True)):
        definition, own = nnx.split(random_llama(specs[k], labels[k], seed=k + 1))
        added = partition.select(own, ["adapter/notes", "initial/notes", "head"])
        model = nnx.merge(definition, base, added)
        definition, params, rest = partition.split(model, config.trainable)
        optimizer = make_optimizer(lambda _, c=config: c.learning_rate, config.weight_decay, config.clip, config.b_rate)
        states.append(init_state(params, optimizer, mesh))
        frozen.append(partition.select(rest, ["initial/notes"]))
        objective = Objective(kinds[k], ("notes",), weights[k])
        dropout = any(c.adapters.notes.dropout for c in configs[k : k + 1])
        state = jax.tree.map(lambda leaf: leaf + 0, states[-1])
        step = make_train_step(definition, optimizer, objective, dropout, states[-1], mesh, accumulate)
        losses = []
        for number in (1, 2):
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            state, metrics = step(state, rest, put_batch(mesh, batch), key)
            losses.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
        expected.append((losses, state))

    settings = make_settings(configs, specs, template, kinds, weights, labels)
    members = Together(template, states, frozen, configs, settings, Objective("binary", ("notes",)), mesh)
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in packed_batch}
    rates, running = np.asarray([c.learning_rate for c in configs], np.float32), np.ones(2, bool)
    found = [members.update(stacked, Clock(np.full(2, n, np.int32), rates, running)) for n in (1, 2)]
    for k, (losses, state) in enumerate(expected):
        of_member = [[float(m["loss"][k]), float(m["gradient_norm"][k])] for m in found]
        np.testing.assert_allclose(of_member, losses, rtol=1e-5)
        own, kept = members.member(k)
        assert jax.tree.structure(own) == jax.tree.structure(state)
        for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(frozen[k]), strict=True):
            np.testing.assert_array_equal(one, other)

    before = members.member(1)[0]
    members.update(stacked, Clock(np.full(2, 3, np.int32), rates, np.asarray([True, False])))
    assert all(
        (a == b).all() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(members.member(1)[0]), strict=True)
    )
    moved = zip(jax.tree.leaves(expected[0][1]), jax.tree.leaves(members.member(0)[0]), strict=True)
    assert not all((a == b).all() for a, b in moved)
