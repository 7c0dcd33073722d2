"""A config to a model on the devices: base from Hugging Face, adapters anew or from an earlier run, head anew."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import partition
from jaxlora.errors import UserError, nearest
from jaxlora.interop import huggingface
from jaxlora.interop.llama_config import read_config
from jaxlora.models.llama import REMAT, Llama
from jaxlora.models.lora import LoraLinear, start_from_base
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.train import checkpoint, mesh


def adapter_specs(config: ConfigDict, layers: int) -> dict[str, LoraSpec]:
    """Returns the adapters of a config by name.

    Args:
      layers: of the base.

    Raises:
      UserError: what `LoraSpec.check` raises, an active adapter that is not declared, or a trainable one that is not
        active.
    """
    specs = {}
    for name, a in config.adapters.items():
        specs[name] = checkpoint.spec_of({field: value for field, value in a.items() if field != "workdir"})
        specs[name].check(layers, f"config.adapters.{name}")
    for name in config.active:
        if name not in specs:
            raise UserError(f"config.active: no adapter {name!r} in config.adapters{nearest(name, specs)}")
    for name in config.trainable:
        if name.removeprefix("adapter/") in set(specs) - set(config.active):
            raise UserError(f"config.trainable: adapter {name!r} is not in config.active, so nothing would train it")
    return specs


def assemble(
    config: ConfigDict, labels: int, device_mesh: Mesh, fresh: bool = True, belongs: Mapping[str, str] | None = None
) -> Llama:
    """Builds the model of a config, every parameter on its devices.

    Args:
      labels: number of labels of the head; 0 builds none.
      fresh: initialises adapters and head, each adapter that has a workdir from there; False leaves them zero, for a
        checkpoint to fill.
      belongs: the fingerprints that an adapter of an earlier run must have been trained with, by name.

    Raises:
      UserError: what `adapter_specs`, `huggingface.load_base` and `checkpoint.load_adapter` raise, or a remat policy
        that does not exist.
    """
    if config.remat not in REMAT:
        raise UserError(f"config.remat: no policy {config.remat!r}{nearest(config.remat, REMAT)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype is {config.dtype!r}; give 'float32' or 'bfloat16'")
    shape = dataclasses.replace(read_config(config.base), dtype=config.dtype, remat=config.remat)
    specs = adapter_specs(config, shape.layers)

    def build(key):
        return Llama(shape, specs, labels, rngs=nnx.Rngs(key))

    abstract = nnx.eval_shape(build, jax.random.key(0))
    definition, state = nnx.split(abstract)
    placed = mesh.shardings(device_mesh, state)
    base = load_base(config.base, abstract, {path: placed[path] for path, _ in partition.items(state, ["base"])})
    values = {}
    if not fresh:
        added = [name for name in partition.partitions(abstract) if name != "base"]
        values = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in partition.items(state, added)}
    else:
        # Under jit the random base that `build` also makes is never computed.
        for name in [*specs, "head"] if labels else specs:
            own = ["head"] if name == "head" else [f"adapter/{name}", f"initial/{name}"]
            if name != "head" and config.adapters[name].workdir:
                values |= checkpoint.load_adapter(config.adapters[name].workdir, name, specs[name], belongs or {})
            else:
                made = jax.jit(lambda key, own=own: _leaves(build(key), own))(jax.random.key(config.seed))
                values |= dict(made)
    for path, leaf in nnx.to_flat_state(state):
        if path in values and values[path].shape != leaf.shape:
            raise UserError(
                f"config.base makes {'.'.join(path)} {list(leaf.shape)}, the earlier run {list(values[path].shape)}; "
                "give the base that it was trained with"
            )
    leaves = [
        (path, leaf.replace(jax.device_put(values[path], placed[path])))
        for path, leaf in nnx.to_flat_state(state)
        if path in values
    ]
    model = nnx.merge(definition, base, nnx.from_flat_state(leaves))
    for name, spec in specs.items():
        if fresh and not config.adapters[name].workdir and (spec.dora or spec.init != "lora"):
            _start_from_base(model, name)
    return model


def load_base(base: str, model: Llama, shardings: dict[tuple[str, ...], NamedSharding]) -> nnx.State:
    """Returns `huggingface.load_base`, with a progress bar."""
    with tqdm(total=huggingface.base_bytes(base), desc="base weights", unit="B", unit_scale=True, leave=False) as bar:
        return huggingface.load_base(base, model, shardings, bar.update)


def _leaves(model: Llama, names: list[str]) -> dict[tuple[str, ...], jax.Array]:
    return {path: leaf[...] for path, leaf in partition.items(nnx.state(model), names)}


def _start_from_base(model: Llama, name: str) -> None:
    for linear in vars(model.blocks).values():
        if isinstance(linear, LoraLinear) and name in linear.adapters:
            definition, state = nnx.split(linear)

            def start(state, definition=definition):
                linear = nnx.merge(definition, state)
                start_from_base(linear, name)
                return nnx.state(linear.adapters[name])

            placed = jax.tree.map(lambda leaf: leaf.sharding, nnx.state(linear.adapters[name]))
            nnx.update(linear.adapters[name], jax.jit(start, out_shardings=placed)(state))
