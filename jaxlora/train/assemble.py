"""A config to a model on the devices: base from Hugging Face, adapters anew or from an earlier run, head anew."""

import dataclasses

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import partition
from jaxlora.errors import UserError, nearest
from jaxlora.interop import huggingface
from jaxlora.models.llama import REMAT, Llama
from jaxlora.models.lora import TARGETS, LoraSpec
from jaxlora.train import checkpoint, mesh


def adapter_specs(config: ConfigDict) -> dict[str, LoraSpec]:
    """Returns the adapters of a config by name.

    Raises:
      UserError: a target that LLaMA does not have, a rank below 1, an active adapter that is not declared, or a
        trainable one that is not active.
    """
    specs = {}
    for name, a in config.adapters.items():
        for target in a.targets:
            if target not in TARGETS:
                raise UserError(f"config.adapters.{name}.targets: {target!r} is no layer{nearest(target, TARGETS)}")
        if a.rank < 1:
            raise UserError(f"config.adapters.{name}.rank is {a.rank}; it must be 1 or more")
        if not 0.0 <= a.dropout < 1.0:
            raise UserError(f"config.adapters.{name}.dropout is {a.dropout}; it must be at least 0 and below 1")
        specs[name] = LoraSpec(a.rank, a.alpha, a.dropout, tuple(a.targets))
    for name in config.active:
        if name not in specs:
            raise UserError(f"config.active: no adapter {name!r} in config.adapters{nearest(name, specs)}")
    for name in config.trainable:
        if name.removeprefix("adapter/") in set(specs) - set(config.active):
            raise UserError(f"config.trainable: adapter {name!r} is not in config.active, so nothing would train it")
    return specs


def assemble(config: ConfigDict, labels: int, device_mesh: Mesh, fresh: bool = True) -> Llama:
    """Builds the model of a config, every parameter on its devices.

    Args:
      labels: number of labels of the head; 0 builds none.
      fresh: initialises adapters and head, each adapter that has a workdir from there; False leaves them zero, for a
        checkpoint to fill.

    Raises:
      UserError: what `adapter_specs`, `huggingface.load_base` and `checkpoint.load_adapter` raise, or a remat policy
        that does not exist.
    """
    specs = adapter_specs(config)
    if config.remat not in REMAT:
        raise UserError(f"config.remat: no policy {config.remat!r}{nearest(config.remat, REMAT)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype is {config.dtype!r}; give 'float32' or 'bfloat16'")
    shape = dataclasses.replace(huggingface.read_config(config.base), dtype=config.dtype, remat=config.remat)

    def build(key):
        return Llama(shape, specs, labels, rngs=nnx.Rngs(key))

    abstract = nnx.eval_shape(build, jax.random.key(0))
    definition, state = nnx.split(abstract)
    added = [name for name in partition.partitions(abstract) if name != "base"]
    base = partition.select(state, ["base"])
    placed = mesh.shardings(device_mesh, state)
    base_placed = {path: placed[path] for path, _ in nnx.to_flat_state(base)}
    with tqdm(total=len(base_placed), desc="base weights", unit="tensor", leave=False) as bar:
        base = huggingface.load_base(config.base, abstract, base_placed, lambda _: bar.update())
    values = {}
    for name in added:
        adapter = name.removeprefix("adapter/")
        if not fresh:
            added_state = nnx.to_flat_state(partition.select(state, [name]))
            values |= {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in added_state}
        elif name != "head" and config.adapters[adapter].workdir:
            fingerprint = huggingface.fingerprint(config.base)
            values |= checkpoint.load_adapter(config.adapters[adapter].workdir, adapter, specs[adapter], fingerprint)
        else:
            # Under jit the random base that `build` also makes is never computed.
            values |= dict(jax.jit(lambda key, name=name: _leaves(build(key), name))(jax.random.key(config.seed)))
    leaves = [
        (path, leaf.replace(jax.device_put(values[path], placed[path])))
        for path, leaf in nnx.to_flat_state(partition.select(state, added))
    ]
    return nnx.merge(definition, base, nnx.from_flat_state(leaves))


def _leaves(model: Llama, name: str) -> dict[tuple[str, ...], jax.Array]:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(partition.select(nnx.state(model), [name]))}
