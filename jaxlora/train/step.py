"""One update: gradients towards the trainable split alone, jitted over the mesh, its state donated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxlora.models.layout import BATCH, constrain
from jaxlora.train.mesh import replicated, traced_on
from jaxlora.train.objective import Objective, mean


class TrainState(NamedTuple):
    """What an update changes: the trainable parameters and the optimizer's state over them, and nothing else."""

    params: nnx.State
    optimizer: optax.OptState


def init_state(params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state of a fresh run: moments lie where their parameters lie, scalars on every device.

    Without explicit shardings the scalars would start on one device and end on all, and the step compile twice.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_optimizer(params, optimizer, mesh))
    return TrainState(params, jax.jit(optimizer.init, out_shardings=shardings)(params))


def abstract_optimizer(params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> optax.OptState:
    """Returns the shapes, dtypes and shardings of the optimizer's state over `params`, which may be abstract too."""

    of_params = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def placed(path, leaf):
        # What the optimizer keeps of a parameter has the parameter's path at the end of its own.
        ends = (_keys(path[i:]) for i in range(len(path)))
        param = next((of_params[end] for end in ends if end in of_params), None)
        sharding = replicated(mesh) if param is None else param.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, params))


def _keys(path: tuple) -> str:
    return jax.tree_util.keystr(path)


def make_train_step(
    definition: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    dropout: bool,
    state: TrainState,
    mesh: Mesh,
    accumulate: int = 1,
) -> Callable:
    """Returns `step(state, frozen, batch, key) -> (state, metrics)`.

    `frozen` is an argument and never a closure, which would bake the base into the program as constants; it is not
    returned either. Metrics are float32 scalars: loss and gradient_norm, of the task alone.

    Args:
      dropout: whether the dropout of adapters and base is applied, with `key`.
      state: the state of `init_state`; the step keeps its shardings.
      accumulate: parts in which the rows of a batch go through the model, one after the other. Losses and weights are
        summed apart over the parts, so the update is that of the whole batch.
    """

    def step(state: TrainState, frozen: nnx.State, batch: dict[str, jax.Array], key: jax.Array):
        def summed(params, part, key):
            return objective.summed(nnx.merge(definition, params, frozen), part, key if dropout else None)

        loss, gradients = loss_and_gradients(summed, state.params, batch, key, accumulate)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(gradients)}
        return TrainState(params, optimizer_state), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(traced_on(mesh, step), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def loss_and_gradients(
    summed: Callable, params: nnx.State, batch: dict[str, jax.Array], key: jax.Array, accumulate: int = 1
) -> tuple[jax.Array, nnx.State]:
    """Returns the mean loss of a batch and its gradients.

    Args:
      summed: (params, batch, key) to (the sum of the weighted losses, the sum of their weights).
      accumulate: as in `make_train_step`.
    """
    differentiated = jax.value_and_grad(summed, has_aux=True)
    if accumulate == 1:
        (total, weight), gradients = differentiated(params, batch, key)
    else:

        def add(sums, numbered):
            number, part = numbered
            found = differentiated(params, part, jax.random.fold_in(key, number))
            return jax.tree.map(lambda one, other: one + other.astype(one.dtype), sums, found), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        start = (jnp.zeros(()), jnp.zeros(())), zeros
        numbered = jnp.arange(accumulate), _parts(batch, accumulate)
        ((total, weight), gradients), _ = jax.lax.scan(add, start, numbered)
    return mean(total, weight), jax.tree.map(lambda g, leaf: mean(g, weight).astype(leaf.dtype), gradients, params)


def _parts(batch: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Returns `[count, batch / count, ...]` of `[batch, ...]`: part i has every count-th row from i on, so that each
    device splits the rows that it has, and none are sent."""
    return {
        name: constrain(jnp.moveaxis(rows.reshape(-1, count, *rows.shape[1:]), 1, 0), None, BATCH)
        for name, rows in batch.items()
    }
