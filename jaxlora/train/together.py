"""Several runs in one program: every run has adapters, head, optimizer, data and settings of its own, and all share one
frozen base.

The runs are *members* of a leading axis. On an accelerator `jax.vmap` maps the update of one member over that axis and
leaves the base out of it, so that the base's matrix products see the rows of all members as one batch. The base
receives no gradient, therefore nothing of one member reaches another: each gives what its own run would give, up to the
order of sums.

One definition computes all members, the *template*. What its arrays are too wide for is filled with zeros:

  rank    as wide as the widest; a column of zeros in A with a row of zeros in B has no gradient, so both stay zero
  head    as many labels as the most; a label that is not a member's own counts in no sum, so its column stays zero
  scale   the template's scale is the same for all, and each member's own is put into its B before the model sees it
  dropout each member's own rate is a variable beside its adapter
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxlora import partition
from jaxlora.data.examples import OUTCOMES
from jaxlora.models.layout import BATCH
from jaxlora.models.llama import Llama
from jaxlora.models.lora import LoraLinear
from jaxlora.models.lora_spec import LoraSpec, module_name
from jaxlora.train.mesh import replicated, traced_on
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import TrainState, init_state, loss_and_gradients


class Settings(NamedTuple):
    """What the members' updates differ in.

    Attributes:
      weight_decay, clip, b_rate: `[members]`, of the optimizer; a clip of infinity does not clip.
      key: `[members]`, from which the dropout of every update follows.
      scales: linear layer -> adapter -> `[members, layers]`, what the template's scale is to be multiplied by.
      dropout: adapter -> `[members]`.
      labels: bool `[members, labels]`, those of the head that are a member's own.
      class_weights: `[members, labels]`, ones for none.
      multilabel: bool `[members]`.
    """

    weight_decay: jax.Array
    clip: jax.Array
    b_rate: jax.Array
    key: jax.Array
    scales: dict[str, dict[str, jax.Array]]
    dropout: dict[str, jax.Array]
    labels: jax.Array
    class_weights: jax.Array
    multilabel: jax.Array


class Clock(NamedTuple):
    """Where the members are: the number of the update to be made, its learning rate, and whether it is to be made, each
    `[members]`."""

    number: np.ndarray
    rate: np.ndarray
    running: np.ndarray


def template_config(configs: Sequence[ConfigDict]) -> ConfigDict:
    """Returns the config whose adapters have room for those of every member, with a scale of 1."""
    template = configs[0].copy_and_resolve_references()
    if jax.default_backend() == "gpu":
        template.attention.kernel = "xla"  # JAX cannot map cuDNN's over members
    for name, adapter in template.adapters.items():
        adapter.rank = max(config.adapters[name].rank for config in configs)
        adapter.dropout = max(config.adapters[name].dropout for config in configs)
        adapter.alpha = float(math.sqrt(adapter.rank) if adapter.rslora else adapter.rank)
        adapter.alphas, adapter.workdir = (), ""
    return template


def make_settings(
    configs: Sequence[ConfigDict],
    specs: Sequence[Mapping[str, LoraSpec]],
    template: Llama,
    kinds: Sequence[str],
    class_weights: Sequence[tuple[float, ...]],
    labels: Sequence[int],
) -> Settings:
    """Returns the settings of the members.

    Args:
      specs: the adapters of each member by name. template: the model with room for all.
      kinds, class_weights, labels: of each member's task: the weights of its classes or (), and how many labels.
    """
    width = max(labels)
    own = np.arange(width) < np.asarray(labels)[:, None]
    weights = [(*given, *[1.0] * (width - len(given))) for given in class_weights]
    return Settings(
        np.asarray([config.weight_decay for config in configs], np.float32),
        np.asarray([config.clip or np.inf for config in configs], np.float32),
        np.asarray([config.b_rate for config in configs], np.float32),
        jnp.stack([jax.random.key(config.seed) for config in configs]),
        _scales(template, specs),
        {name: np.asarray([of[name].dropout for of in specs], np.float32) for name in specs[0]},
        own,
        np.asarray(weights, np.float32),
        np.asarray([kind == "multilabel" for kind in kinds]),
    )


def _scales(template: Llama, specs: Sequence[Mapping[str, LoraSpec]]) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for linear, module in _linears(template).items():
        for (name, _), scales in zip(module.specs, module.scales, strict=True):
            sizes = [[of[name].size_of(module_name(linear, i)) for i in range(len(scales))] for of in specs]
            own = [[size.scale if size else 0.0 for size in of_member] for of_member in sizes]
            of_template = np.maximum(np.asarray(scales, np.float32), 1e-30)  # 0 where the adapter is absent
            found.setdefault(linear, {})[name] = np.asarray(own, np.float32) / of_template
    return found


class Together:
    """The members of one program: their parameters, stacked, and the update of all of them.

    Args:
      template: the model with room for every member, on its devices; its base is the one they share.
      states: of each member what an update changes, in the member's own sizes.
      frozen: of each member the adapters that it does not train (and a head that it does not).
      configs: of the members.
      objective: of any member; those of `OUTCOMES` may be of other kinds, which the settings tell.
    """

    def __init__(
        self,
        template: Llama,
        states: Sequence[TrainState],
        frozen: Sequence[nnx.State],
        configs: Sequence[ConfigDict],
        settings: Settings,
        objective: Objective,
        mesh: Mesh,
    ):
        trainable = configs[0].trainable
        definition, params, rest = partition.split(template, trainable)
        added = partition.partitions(template)
        self.base = partition.select(rest, ["base"])
        one = partition.select(rest, [name for name in added if name != "base"])
        clips, stretches = any(c.clip for c in configs), any(c.b_rate != 1.0 for c in configs)

        def optimizer(rate, own: Settings) -> optax.GradientTransformation:
            return make_optimizer(
                lambda _: rate, own.weight_decay, own.clip if clips else 0.0, own.b_rate if stretches else 1.0
            )

        first = init_state(params, optimizer(0.0, jax.tree.map(lambda x: x[0], settings)), mesh)
        self._one = jax.tree.map(lambda leaf: leaf.sharding, (first, one))
        self._own = [jax.tree.map(_form, (state, of)) for state, of in zip(states, frozen, strict=True)]
        self.state, self.frozen = _stacked(list(zip(states, frozen, strict=True)), (first, one), mesh)
        self.settings = jax.device_put(settings, replicated(mesh))
        self._mesh, self._definition = mesh, definition
        dropout = any(config.adapters[name].dropout for config in configs for name in objective.active)
        self._step = _make_step(definition, objective, optimizer, dropout, self.state, mesh, configs[0].accumulate)
        self._member = jax.jit(lambda state, k: jax.tree.map(lambda leaf: leaf[k], state), out_shardings=self._one)
        self._model = jax.jit(lambda model, scales: _scaled(model, scales))

    def update(self, batch: dict[str, np.ndarray], clock: Clock) -> dict[str, jax.Array]:
        """Makes the next update of the members that run.

        Args:
          batch: a batch of each member, stacked, `[members, batch, ...]`.

        Returns:
          loss and gradient_norm, float32 `[members]`.
        """
        sharding = NamedSharding(self._mesh, P(None, BATCH))
        placed = {
            name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__) for name, rows in batch.items()
        }
        self.state, metrics = self._step(self.state, self.frozen, self.base, self.settings, placed, clock)
        return metrics

    def member(self, number: int) -> tuple[TrainState, nnx.State]:
        """Returns what a member's updates change and its frozen adapters, in the member's own sizes."""
        found = jax.tree.leaves(self._member((self.state, self.frozen), number))
        forms, structure = jax.tree.flatten(self._own[number])
        return jax.tree.unflatten(structure, [_cut(leaf, form.shape) for leaf, form in zip(found, forms, strict=True)])

    def model(self, number: int) -> nnx.State:
        """Returns the template's whole state that computes what the member's model does."""
        state, frozen = self._member((self.state, self.frozen), number)
        scales = jax.tree.map(lambda scale: scale[number], self.settings.scales)
        return nnx.merge_state(self._model(nnx.merge_state(state.params, frozen), scales), self.base)


def _make_step(
    definition: nnx.GraphDef,
    objective: Objective,
    optimizer: Callable,
    dropout: bool,
    state: TrainState,
    mesh: Mesh,
    accumulate: int,
) -> Callable:
    """Returns `step(state, frozen, base, settings, batch, clock) -> (state, metrics)`, the state donated."""

    def of_member(base, state, frozen, own: Settings, batch, clock: Clock):
        def summed(params, part, key):
            model = nnx.merge(definition, _scaled(params, own.scales), _scaled(frozen, own.scales), base)
            if dropout:
                _set_dropout(model, own.dropout)
            key = key if dropout else None
            if objective.kind not in OUTCOMES:
                return objective.summed(model, part, key)
            return _of_notes(objective.note_logits(model, part, key), part["labels"], part["notes"] > 0, own)

        key = jax.random.fold_in(own.key, clock.number)
        loss, gradients = loss_and_gradients(summed, state.params, batch, key, accumulate)
        updates, moved = optimizer(clock.rate, own).update(gradients, state.optimizer, state.params)
        after = TrainState(optax.apply_updates(state.params, updates), moved)
        after = jax.tree.map(lambda new, old: jnp.where(clock.running, new, old), after, state)
        return after, {"loss": loss, "gradient_norm": optax.global_norm(gradients)}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def step(state, frozen, base, settings, batch, clock):
        members = state, frozen, settings, batch, clock
        if _in_turn(mesh):
            return jax.lax.map(lambda own: of_member(base, *own), members)
        return jax.vmap(lambda own: of_member(base, *own))(members)

    return jax.jit(traced_on(mesh, step), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _in_turn(mesh: Mesh) -> bool:
    """Whether the members follow one another in the program: a CPU has no wide units to fill, and its caches hold one
    member's activations but not those of all."""
    return mesh.devices.flat[0].platform == "cpu"


def _of_notes(logits: jax.Array, labels: jax.Array, present: jax.Array, own: Settings) -> tuple[jax.Array, jax.Array]:
    """Returns what `Objective.summed` does of a batch's notes, over the member's own labels.

    Args:
      logits: `[batch, max_segments, labels]`.
      labels: int `[batch, max_segments]`, or 0 and 1 for each label. present: `[batch, max_segments]`.
    """
    hot = jax.nn.one_hot(labels, logits.shape[-1]) if labels.ndim == 2 else labels
    logits = jnp.where(own.labels, logits, 0.0)
    each = (optax.sigmoid_binary_cross_entropy(logits, hot) * own.labels).sum(axis=-1) / own.labels.sum()
    of_class = jax.nn.logsumexp(logits, axis=-1, where=own.labels) - (hot * logits).sum(axis=-1)
    weights = present * jnp.where(own.multilabel, 1.0, (hot * own.class_weights).sum(axis=-1))
    return (jnp.where(own.multilabel, each, of_class) * weights).sum(), weights.sum()


def _scaled(state: nnx.State, scales: Mapping[str, Mapping[str, jax.Array]]) -> nnx.State:
    """Returns a member's state with its scale, `[layers]` of every linear layer and adapter, put into B."""
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        if "adapters" in path and path[-1] == "b":
            leaf = leaf.replace(leaf[...] * scales[path[1]][path[3]][:, None, None])
        leaves.append((path, leaf))
    return nnx.from_flat_state(leaves)


def _set_dropout(model: Llama, rates: Mapping[str, jax.Array]) -> None:
    for linear in _linears(model).values():
        for name, weights in linear.adapters.items():
            weights.dropout = nnx.Variable(jnp.full(weights.a.shape[0], rates[name]))


def _linears(model: Llama) -> dict[str, LoraLinear]:
    return {name: module for name, module in vars(model.blocks).items() if isinstance(module, LoraLinear)}


def _stacked(members: Sequence[Any], one: Any, mesh: Mesh) -> Any:
    """Returns the members' trees as one with a leading axis, in the sizes and on the devices of the tree `one`."""
    forms, structure = jax.tree.flatten(one)
    leaves = [jax.tree.leaves(member) for member in members]

    def stack(leaves):
        return [
            jnp.stack([_grown(leaf, form.shape) for leaf in of_members])
            for form, *of_members in zip(forms, *leaves, strict=True)
        ]

    placed = [NamedSharding(mesh, P(None, *leaf.sharding.spec)) for leaf in forms]
    return jax.tree.unflatten(structure, jax.jit(stack, out_shardings=placed)(leaves))


def _form(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _grown(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return (
        leaf
        if leaf.shape == shape
        else jnp.pad(leaf, [(0, wide - size) for wide, size in zip(shape, leaf.shape, strict=True)])
    )


def _cut(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return leaf if leaf.shape == shape else leaf[tuple(slice(size) for size in shape)]
