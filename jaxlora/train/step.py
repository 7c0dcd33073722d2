"""One update: gradients towards the trainable split alone, jitted over the mesh, its state donated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxlora.train.mesh import replicated
from jaxlora.train.objective import Objective


class TrainState(NamedTuple):
    """What an update changes: the trainable parameters and the optimizer's state over them, and nothing else."""

    params: nnx.State
    optimizer: optax.OptState


def init_state(params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state of a fresh run: moments lie where their parameters lie, scalars on every device.

    Without explicit shardings the scalars would start on one device and end on all, and the step compile twice.
    """
    shardings = optax.tree_map_params(
        optimizer,
        lambda _, param: param.sharding,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(params, jax.jit(optimizer.init, out_shardings=shardings)(params))


def make_train_step(
    definition: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    dropout: bool,
    state: TrainState,
    mesh: Mesh,
) -> Callable:
    """Returns `step(state, frozen, batch, key) -> (state, metrics)`.

    `frozen` is an argument and never a closure, which would bake the base into the program as constants; it is not
    returned either. Metrics are float32 scalars: loss and gradient_norm.

    Args:
      dropout: whether the adapters' dropout is applied, with `key`.
      state: the state of `init_state`; the step keeps its shardings.
    """

    def step(state: TrainState, frozen: nnx.State, batch: dict[str, jax.Array], key: jax.Array):
        def loss_of(params):
            return objective.loss(nnx.merge(definition, params, frozen), batch, key if dropout else None)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, optimizer_state), {"loss": loss, "gradient_norm": optax.global_norm(gradients)}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
