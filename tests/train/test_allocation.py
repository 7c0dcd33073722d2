"""How AdaLoRA's budget falls, and which triplets it leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlora import partition
from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train.allocation import allocated, budgets, falling, orthogonality
from jaxlora.train.mesh import make_mesh, shardings
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import abstract_optimizer, init_state, make_train_step

SPEC = AdaLoraSpec(4, 8.0, target_rank=2, start=2, end=3, interval=2)


def test_the_budget_falls_by_a_cubic_between_start_and_end():
    masked, last = falling(SPEC, [(4, 4), (4, 0)], 12)
    assert last == 9
    left = {update: int(6 * (1 - (update - 2) / 7) ** 3 + 6) for update in (4, 6, 8)}  # 12 triplets, 6 at the end
    wanted = {**{update: 12 - budget for update, budget in left.items()}, 9: 6}
    assert {update: count for update, count in enumerate(masked) if count} == wanted


def trained(random_llama, spec=SPEC, updates=12):
    model = random_llama({"clinical": spec, "plain": LoraSpec(2, 4.0)}, 2, layers=2)
    params = partition.split(model, ["clinical", "plain", "head"])[1]
    return model, params, budgets(model, params, updates)


def test_only_what_is_trained_has_a_budget(random_llama):
    model, _, (budget,) = trained(random_llama)
    assert budget.ranks == {("blocks", name, "adapters", "clinical"): (4, 4) for name in ("q_proj", "v_proj")}
    assert budgets(model, partition.split(model, ["plain"])[1], 12) == []


def singular(params):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params) if path[-1] == "e"}


def test_triplets_go_and_may_come_back_until_the_budget_has_fallen(random_llama):
    _, params, (budget,) = trained(random_llama)
    optimizer = allocated(optax.sgd(0.01), budget)
    state, step, rng, left = optimizer.init(params), jax.jit(optimizer.update), np.random.default_rng(0), []
    for _ in range(12):
        gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)
        updates, state = step(gradients, state, params)
        plain = jax.tree.map(lambda leaf: -0.01 * leaf, gradients)
        for (path, found), (_, wanted) in zip(nnx.to_flat_state(updates), nnx.to_flat_state(plain), strict=True):
            if path[-1] != "e":
                np.testing.assert_allclose(found[...], wanted[...], rtol=1e-6)
        params = optax.apply_updates(params, updates)
        left.append(sum(np.count_nonzero(e) for e in singular(params).values()))
    # Sixteen triplets; masked at 4, 6 and 8, after which all come back, and from 9 on for good.
    counts = [16 - int(n) for n in budget.masked[1:]]
    assert left == [*counts[:9], 8, 8, 8] and counts[3] < 16 and counts[4] == 16


def test_the_penalty_is_that_of_the_definition_and_leaves_the_rest_alone(random_llama):
    _, params, (budget,) = trained(random_llama, AdaLoraSpec(3, 3.0, target_rank=1, layers=(1,), orthogonality=0.25))
    gradients = jax.tree.map(jnp.zeros_like, params)
    found = dict(nnx.to_flat_state(orthogonality(budget).update(gradients, optax.EmptyState(), params)[0]))
    values = {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(params)}
    for path, leaf in found.items():
        if path[:-1] not in budget.ranks or path[-1] == "e":
            assert not np.any(leaf[...])
            continue
        assert not np.any(leaf[0])  # absent there
        p = values[path][1] if path[-1] == "a" else values[path][1].T
        distance = p.T @ p - np.eye(3)
        wanted = 0.25 / 4 * 2 * p @ distance / np.linalg.norm(distance)
        np.testing.assert_allclose(leaf[1] if path[-1] == "a" else leaf[1].T, wanted, rtol=1e-4, atol=1e-6)


def test_the_step_reports_the_loss_of_the_task(random_llama, packed_batch):
    losses = {}
    for weight in (0.0, 10.0):
        spec = AdaLoraSpec(4, 8.0, target_rank=2, orthogonality=weight)
        model = random_llama({"clinical": spec}, 2)
        definition, params, frozen = partition.split(model, ["clinical"])
        optimizer = make_optimizer(lambda _: 0.01, 0.0, 1.0, budgets=budgets(model, params, 5))
        state = init_state(params, optimizer, make_mesh(1, 1))
        objective = Objective("multiclass", ("clinical",))
        step = make_train_step(definition, optimizer, objective, False, state, make_mesh(1, 1))
        after, metrics = step(state, frozen, packed_batch, jax.random.key(0))
        losses[weight] = {name: float(value) for name, value in metrics.items()}, singular(after.params)
    assert losses[0.0][0] == losses[10.0][0]


def test_importance_lies_where_its_parameters_lie(random_llama):
    mesh = make_mesh(2, 1, 2 * jax.devices())
    _, params, (budget,) = trained(random_llama)
    placed = shardings(mesh, params)
    forms = nnx.from_flat_state(
        [
            (p, leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[p])))
            for p, leaf in nnx.to_flat_state(params)
        ]
    )
    state = abstract_optimizer(forms, allocated(optax.adamw(0.1), budget), mesh)
    for path, leaf in nnx.to_flat_state(state.uncertainty):
        assert leaf.sharding == placed[path]
    assert "fsdp" in str(state.uncertainty.blocks["q_proj"]["adapters"]["clinical"]["a"].sharding.spec)
    assert all(leaf.sharding.is_fully_replicated for leaf in (state.count, *state.kept.values()))
