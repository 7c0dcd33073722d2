"""A config to its update: the optimizer, the schedule, the split and the step of a run."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.config import drops_out
from jaxlora.models.bases import Model
from jaxlora.train.allocation import budgets
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer, schedule
from jaxlora.train.step import TrainState, abstract_optimizer, init_state, make_train_step


class Update(NamedTuple):
    """What a run does and what it does it to: the step of `make_train_step`, the state and the frozen parameters of a
    fresh run, and the schedule of the learning rate."""

    step: Callable
    state: TrainState
    frozen: nnx.State
    rate: optax.Schedule


def make_update(config: ConfigDict, model: Model, objective: Objective, updates: int, mesh: Mesh) -> Update:
    """Returns the update that a config asks for.

    Args:
      model: on its devices; or of shapes with shardings, and then the state is too.
      updates: of the whole run, for the schedule.

    Raises:
      UserError: what `partition.split` and `schedule` raise.
    """
    definition, params, frozen = partition.split(model, config.trainable)
    rate = schedule(config.learning_rate, updates, config.warmup, config.decay, config.paper_accumulate)
    allotted = budgets(model, params, updates)
    optimizer = make_optimizer(rate, config.weight_decay, config.clip, config.b_rate, allotted)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        state = TrainState(params, abstract_optimizer(params, optimizer, mesh))
    else:
        state = init_state(params, optimizer, mesh)
    dropout = drops_out(config, model.config.drops_out)
    step = make_train_step(definition, optimizer, objective, dropout, state, mesh, config.accumulate)
    return Update(step, state, frozen, rate)
