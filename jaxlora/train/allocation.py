"""How AdaLoRA is trained: a penalty that keeps P and Q orthogonal, and a budget of triplets that falls (Zhang et al.
2023), as PEFT does it.

After every update, with w a parameter as it is now and g the gradient of the update:

    I = |w g|,   S = beta1 S + (1 - beta1) I,   U = beta2 U + (1 - beta2) |I - S|,   a weight's importance is S U,

and that of a triplet is its entry of `e` with the means over its column of P and its row of Q. The budget falls from
all triplets to `target_rank` a layer by a cubic; every `interval` updates, the `e` of the least important triplets of
all layers, those beyond the budget, become zero. They still receive gradients and may come back; when the budget has
fallen, the triplets that are left are fixed. Updates are counted from 1, so that a run with `end` 0 ends at its target.
A run that trains the AdaLoRA of an earlier one begins the allocation anew, with every triplet.

Both are optax transformations. The penalty's gradient is added to the gradients of the task, once an update, however
many parts it has; the loss and the norm that a run reports are the task's alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxlora.models.adalora import AdaLoraSpec
from jaxlora.models.lora import LoraLinear

Path = tuple[str, ...]


class Budget(NamedTuple):
    """One AdaLoRA that is trained.

    Attributes:
      spec: its description.
      ranks: of each layer, by the path of its parameters, e.g. ("blocks", "q_proj", "adapters", "clinical").
      masked: int `[updates + 1]`, how many triplets each update zeroes, by its number; 0 allocates nothing.
      last: the update after which the triplets that are left are fixed.
    """

    spec: AdaLoraSpec
    ranks: Mapping[Path, tuple[int, ...]]
    masked: np.ndarray
    last: int


class AllocationState(NamedTuple):
    """Attributes:
    inner: of the optimizer that makes the updates.
    count: updates so far.
    sensitivity, uncertainty: S and U, in the form of the adapter's parameters.
    kept: bool `[layers, rank]` of each linear layer, the triplets that are left when the budget has fallen.
    """

    inner: optax.OptState
    count: jax.Array
    sensitivity: nnx.State
    uncertainty: nnx.State
    kept: dict[str, jax.Array]


def budgets(model: nnx.Module, trained: nnx.State, updates: int) -> list[Budget]:
    """Returns a budget for every AdaLoRA that is trained.

    Args:
      trained: the parameters of the model that are. updates: of the whole run.
    """
    paths = {path[:-1] for path, _ in nnx.to_flat_state(trained) if "adapters" in path}
    specs: dict[str, AdaLoraSpec] = {}
    ranks: dict[str, dict[Path, tuple[int, ...]]] = {}
    linears = [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, LoraLinear)]
    for path, linear in linears:
        for (name, spec), of_layers in zip(linear.specs, linear.ranks, strict=True):
            own = (*path, "adapters", name)
            if isinstance(spec, AdaLoraSpec) and own in paths:
                specs[name] = spec
                ranks.setdefault(name, {})[own] = of_layers
    return [Budget(specs[name], ranks[name], *falling(specs[name], ranks[name].values(), updates)) for name in specs]


def falling(spec: AdaLoraSpec, ranks, updates: int) -> tuple[np.ndarray, int]:
    """Returns `Budget.masked` and `Budget.last`.

    Args:
      ranks: of each layer, 0 where the adapter is absent, of each kind of linear layer.
    """
    whole = sum(sum(of_layers) for of_layers in ranks)
    target = spec.target_rank * sum(rank > 0 for of_layers in ranks for rank in of_layers)
    last, masked = updates - spec.end, np.zeros(updates + 1, np.int32)
    for update in range(max(1, spec.start + 1), last):
        if update % spec.interval == 0:
            left = 1 - (update - spec.start) / (last - spec.start)
            masked[update] = whole - int((whole - target) * left**3 + target)
    masked[max(last, 0) : last + 1] = whole - target
    return masked, last


def orthogonality(budget: Budget) -> optax.GradientTransformation:
    """Returns what adds the gradient of the penalty to that of the task: the weight times the mean, over every P and Q,
    of the Frobenius norms of P' P - 1 and Q Q' - 1."""

    def penalty(own: dict[Path, dict[str, jax.Array]]) -> jax.Array:
        total = count = 0.0
        for path, ranks in budget.ranks.items():
            here = np.asarray(ranks) > 0
            a, b = own[path]["a"], own[path]["b"]
            for product in (jnp.einsum("LIR,LIS->LRS", a, a), jnp.einsum("LRO,LSO->LRS", b, b)):
                squares = jnp.square(product - jnp.eye(product.shape[-1])).sum(axis=(1, 2))
                total += (jnp.sqrt(jnp.maximum(squares, 1e-12)) * here).sum()
                count += here.sum()
        return budget.spec.orthogonality * total / count

    def update(gradients, state, params):
        added = jax.grad(penalty)({path: _values(params, path) for path in budget.ranks})
        leaves = [
            (path, leaf.replace(leaf[...] + added[path[:-1]][path[-1]]) if path[:-1] in added else leaf)
            for path, leaf in nnx.to_flat_state(gradients)
        ]
        return nnx.from_flat_state(leaves), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def allocated(inner: optax.GradientTransformation, budget: Budget) -> optax.GradientTransformation:
    """Returns the optimizer `inner` with an allocation of the budget after each of its updates."""
    spec = budget.spec

    def own(tree: nnx.State) -> nnx.State:
        return nnx.from_flat_state([(p, leaf) for p, leaf in nnx.to_flat_state(tree) if p[:-1] in budget.ranks])

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, own(params))
        kept = {_name(path): jnp.ones(_values(params, path)["e"].shape, bool) for path in budget.ranks}
        return AllocationState(inner.init(params), jnp.zeros((), jnp.int32), zeros, zeros, kept)

    def update(gradients, state, params):
        updates, moved = inner.update(gradients, state.inner, params)
        count = state.count + 1
        after = jax.tree.map(lambda w, u: w + u, own(params), own(updates))
        importance = jax.tree.map(lambda w, g: jnp.abs(w * g), after, own(gradients))
        sensitivity = _running(spec.beta1, state.sensitivity, importance)
        distance = jax.tree.map(lambda i, s: jnp.abs(i - s), importance, sensitivity)
        uncertainty = _running(spec.beta2, state.uncertainty, distance)
        # The last allocation goes by the importance of the update before it.
        sensitivity, uncertainty = jax.tree.map(
            lambda new, old: jnp.where(count < budget.last, new, old),
            (sensitivity, uncertainty),
            (state.sensitivity, state.uncertainty),
        )
        chosen = _most_important(sensitivity, uncertainty, budget, count)
        kept = {name: jnp.where(count == budget.last, chosen[name], state.kept[name]) for name in chosen}
        keep = {name: jnp.where(count > budget.last, kept[name], chosen[name]) for name in chosen}
        leaves = []
        for path, leaf in nnx.to_flat_state(updates):
            if path[-1] == "e" and path[:-1] in budget.ranks:
                # Adding -e gives 0 exactly.
                leaf = leaf.replace(jnp.where(keep[_name(path[:-1])], leaf[...], -_values(params, path[:-1])["e"]))
            leaves.append((path, leaf))
        return nnx.from_flat_state(leaves), AllocationState(moved, count, sensitivity, uncertainty, kept)

    return optax.GradientTransformation(init, update)


def _most_important(sensitivity, uncertainty, budget: Budget, count: jax.Array) -> dict[str, jax.Array]:
    """Which triplets of each linear layer `[layers, rank]` an update leaves: all but those of the lowest scores, ties
    with the last of them included."""
    scores = {}
    for path, ranks in budget.ranks.items():
        s, u = _values(sensitivity, path), _values(uncertainty, path)
        of = {leaf: s[leaf] * u[leaf] for leaf in s}
        score = of["e"] + of["a"].mean(axis=1) + of["b"].mean(axis=2)
        scores[_name(path)] = jnp.where(np.asarray(ranks)[:, None] > 0, score, jnp.inf)
    masked = jnp.asarray(budget.masked)[jnp.minimum(count, len(budget.masked) - 1)]
    ordered = jnp.sort(jnp.concatenate([score.ravel() for score in scores.values()]))
    threshold = jnp.where(masked > 0, ordered[jnp.maximum(masked - 1, 0)], -jnp.inf)
    return {name: score > threshold for name, score in scores.items()}


def _running(beta: float, mean: nnx.State, value: nnx.State) -> nnx.State:
    return jax.tree.map(lambda m, v: beta * m + (1 - beta) * v, mean, value)


def _values(state: nnx.State, path: Path) -> dict[str, jax.Array]:
    """The parameters of one adapter in one linear layer, by their names."""
    for key in path:
        state = state[key]
    return {name: leaf[...] for name, leaf in state.items()}


def _name(path: Path) -> str:
    return ".".join(path)
