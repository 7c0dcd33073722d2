"""A config to a model on the devices: base from Hugging Face, adapters anew or from an earlier run, head anew."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxlora import partition
from jaxlora.config import field_of
from jaxlora.data.tokens import Tokenizer
from jaxlora.errors import UserError, nearest, one_of
from jaxlora.interop import huggingface
from jaxlora.models.attention import choose
from jaxlora.models.bases import Model, Shape, build
from jaxlora.models.bert import BertConfig
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora import LoraLinear, start_from_base
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.prompt_spec import PromptSpec
from jaxlora.models.quantized import PRECISIONS
from jaxlora.models.remat import REMAT
from jaxlora.models.techniques import Spec, spec_of
from jaxlora.train import mesh
from jaxlora.train.belonging import load_adapter


def adapter_specs(config: ConfigDict, layers: int, modules: Sequence[str] = LlamaConfig.modules) -> dict[str, Spec]:
    """Returns the adapters of a config by name.

    Args:
      layers, modules: of the base, those named in `modules` being the linear layers of a block.

    Raises:
      UserError: what `spec_of` and the description's `check` raise, a technique that a BERT does not have, an active
        adapter that is not declared, or a trainable one that is not active.
    """
    specs = {}
    for name, a in config.adapters.items():
        specs[name] = spec_of({field: value for field, value in a.items() if field != "workdir"})
        if modules == LlamaConfig.modules:
            specs[name].check(layers, f"config.adapters.{name}")
        elif isinstance(specs[name], LoraSpec):
            specs[name].check(layers, f"config.adapters.{name}", modules)
        else:
            raise UserError(f"config.adapters.{name}: config.base is a BERT, which takes LoRA alone; give a LoRA")
    for name in config.active:
        if name not in specs:
            raise UserError(f"config.active: no adapter {name!r} in config.adapters{nearest(name, specs)}")
    for name in config.trainable:
        if name.removeprefix("adapter/") in set(specs) - set(config.active):
            raise UserError(f"config.trainable: adapter {name!r} is not in config.active, so nothing would train it")
    return specs


def model_shape(config: ConfigDict) -> Shape:
    """Returns the shape of a config's base, with the config's way to compute it.

    Raises:
      UserError: what `read_shape` raises, or a remat policy, a dtype or a precision that does not exist, or that a BERT
        does not have.
    """
    if config.remat not in REMAT:
        raise UserError(f"config.remat: no policy {config.remat!r}{nearest(config.remat, REMAT)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype is {config.dtype!r}; give 'float32' or 'bfloat16'")
    if config.quantize:
        one_of("config.quantize", config.quantize, PRECISIONS)
    shape, trained = huggingface.read_shape(config.base), partition.trains_base(config.trainable)
    if isinstance(shape, BertConfig):
        for field, usual in (("quantize", ("",)), ("attention.kernel", ("auto", "xla"))):
            if field_of(config, field) not in usual:
                raise UserError(f"config.{field} is {field_of(config, field)!r}, which no BERT has; give {usual[0]!r}")
        return dataclasses.replace(shape, dtype=config.dtype, trained=trained, remat=config.remat)
    return dataclasses.replace(
        shape,
        dtype=config.dtype,
        trained=trained,
        quantize=config.quantize,
        remat=config.remat,
        attention=config.attention.kernel,
        attention_block=config.attention.block,
    )


def abstract(config: ConfigDict, shape: Shape, labels: int, device_mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the model of a config as (definition, state), the state of shapes, dtypes and shardings alone.

    Args:
      shape: that of `model_shape`. labels: number of labels of the head; 0 builds none.

    Raises:
      UserError: what `adapter_specs` and `build` raise.
    """
    specs = adapter_specs(config, shape.layers, shape.modules)
    definition, state = nnx.split(nnx.eval_shape(lambda: build(shape, specs, labels, rngs=nnx.Rngs(0))))
    placed = mesh.shardings(device_mesh, state, config.mesh.rules)
    leaves = [
        (path, leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed[path])))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return definition, nnx.from_flat_state(leaves)


def assemble(
    config: ConfigDict,
    labels: int,
    device_mesh: Mesh,
    fresh: bool = True,
    belongs: Mapping[str, str] | None = None,
    base: nnx.State | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Model:
    """Builds the model of a config, every parameter on its devices.

    Args:
      labels: number of labels of the head; 0 builds none.
      fresh: initialises adapters and head, each adapter that has a workdir from there; False leaves them zero, for a
        checkpoint to fill.
      belongs: the fingerprints that an adapter of an earlier run must have been trained with, by name.
      base: the base's parameters, where they are on their devices already.
      report: called with a line on what quantising the base changed, where it is quantised.

    Raises:
      UserError: what `model_shape`, `attention.choose`, `adapter_specs`, `huggingface.load_base` and
        `load_adapter` raise, or a quantised base that is to be trained.
    """
    shape = model_shape(config)
    if isinstance(shape, LlamaConfig):
        choose(shape.attention, shape.attention_block, device_mesh.devices.flat[0], shape.head_dim, shape.dtype)
    specs = adapter_specs(config, shape.layers, shape.modules)
    definition, state = abstract(config, shape, labels, device_mesh)
    model = nnx.merge(definition, state)
    placed = {path: leaf.sharding for path, leaf in nnx.to_flat_state(state)}
    if config.quantize and partition.trains_base(config.trainable):
        raise UserError(
            f"config.trainable names the base, which config.quantize = {config.quantize!r} keeps frozen; "
            "give config.quantize = ''"
        )
    if base is None:
        of_base = {path: placed[path] for path, _ in partition.items(state, ["base"])}
        base = load_base(config.base, model, of_base, report)
    values = {}
    if not fresh:
        added = [name for name in partition.partitions(model) if name != "base"]
        values = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in partition.items(state, added)}
    else:
        for name in [*specs, "head"] if labels else specs:
            own = ["head"] if name == "head" else [f"adapter/{name}", f"initial/{name}"]
            if name != "head" and config.adapters[name].workdir:
                values |= load_adapter(config.adapters[name].workdir, name, specs[name], belongs or {})
            else:
                values |= _maker(shape, tuple(specs.items()), labels, tuple(own))(jax.random.key(config.seed))
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
        if fresh and not config.adapters[name].workdir:
            if isinstance(spec, LoraSpec) and (spec.dora or spec.init != "lora"):
                _start_from_base(model, name)
            elif isinstance(spec, PromptSpec) and spec.init == "text":
                _start_from_text(model, name, Tokenizer(config.base).encode([spec.text])[0])
    return model


def load_base(
    base: str,
    model: Model,
    shardings: dict[tuple[str, ...], NamedSharding],
    report: Callable[[str], None] = lambda _: None,
) -> nnx.State:
    """Returns `huggingface.load_base`, with a progress bar, and reports how far a quantised base is from its files, or
    that a BERT's pooler is missing there, or that more is there than a BERT has."""
    errors: dict[str, float] = {}
    with tqdm(total=huggingface.base_bytes(base), desc="base weights", unit="B", unit_scale=True, leave=False) as bar:
        state = huggingface.load_base(base, model, shardings, bar.update, errors.__setitem__)
    if huggingface.lacks_pooler(base):
        report(f"{huggingface.public_name(base)} has no pooler: a random one takes its place; train it with the base")
    if others := huggingface.left_out(base):
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        report(f"{huggingface.public_name(base)} has tensors that no BERT has, left out: {', '.join(others[:5])}{more}")
    if errors:
        worst = max(errors, key=errors.get)
        report(
            f"base in {model.config.quantize}: relative error of the kernels {np.mean(list(errors.values())):.2%} on "
            f"average, {errors[worst]:.2%} at most ({worst})"
        )
    return state


@functools.lru_cache(maxsize=8)
def _maker(
    shape: Shape, specs: tuple[tuple[str, Spec], ...], labels: int, names: tuple[str, ...]
) -> Callable[[jax.Array], dict[tuple[str, ...], jax.Array]]:
    """Returns what makes fresh partitions from a key; compiled once for the members of a sweep that are of one size.

    Under jit the random base that `build` also makes is never computed. Rows of one seed have one head to begin with,
    whatever adapters they have, so that a row with an adapter that does nothing is the row without it.
    """

    def make(key: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        rngs = nnx.Rngs(key, head=jax.random.fold_in(key, 1))
        return _leaves(build(shape, dict(specs), labels, rngs=rngs), names)

    return jax.jit(make)


def _leaves(model: Model, names: Sequence[str]) -> dict[tuple[str, ...], jax.Array]:
    return {path: leaf[...] for path, leaf in partition.items(nnx.state(model), names)}


def _start_from_base(model: Model, name: str) -> None:
    for linear in vars(model.blocks).values():
        if isinstance(linear, LoraLinear) and name in linear.adapters:
            definition, state = nnx.split(linear)

            def start(state, definition=definition):
                linear = nnx.merge(definition, state)
                start_from_base(linear, name)
                return nnx.state(linear.adapters[name])

            placed = jax.tree.map(lambda leaf: leaf.sharding, nnx.state(linear.adapters[name]))
            nnx.update(linear.adapters[name], jax.jit(start, out_shardings=placed)(state))


def _start_from_text(model: Model, name: str, ids: Sequence[int]) -> None:
    """Starts the virtual tokens of a prompt from the embeddings of `ids`, BOS among them, again and again."""
    table = model.adapters[name].table
    chosen = np.resize(np.asarray(ids), table.shape[0])
    start = jax.jit(lambda embedding: embedding[chosen].astype(table.dtype), out_shardings=table[...].sharding)
    table[...] = start(model.embedding[...])
