"""A directory to damage, and what the tests of `interop` do with it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def base(small_base, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(small_base, tmp_path / "base")


@pytest.fixture
def edit_config(base) -> Callable:
    """Sets fields of the copy's config.json; None removes one: `edit_config(**fields)`."""

    def edit(**fields):
        raw = {**json.loads((base / "config.json").read_text()), **fields}
        (base / "config.json").write_text(json.dumps({name: x for name, x in raw.items() if x is not None}))

    return edit


@pytest.fixture
def edit_tensors(base) -> Callable:
    """Rewrites the copy's weights with what a function makes of them, or leaves in them: `edit_tensors(function)`."""
    from safetensors.numpy import load_file, save_file

    def edit(function):
        tensors = load_file(base / "model.safetensors")
        save_file(function(tensors) or tensors, base / "model.safetensors")

    return edit


@pytest.fixture(scope="session")
def load() -> Callable:
    """Reads the base of a directory, and with `head` the head too: the values by path,
    `load(folder, labels, head, **fields of LlamaConfig)`."""
    import jax
    import numpy as np
    from flax import nnx

    from jaxlora.interop import huggingface
    from jaxlora.interop.llama_config import read_config
    from jaxlora.models.llama import Llama
    from jaxlora.models.lora_spec import LoraSpec
    from jaxlora.partition import partition_of
    from jaxlora.train.mesh import make_mesh, shardings

    def load(folder, labels=0, head=False, **changes):
        shape = dataclasses.replace(read_config(folder), **changes)
        abstract = nnx.eval_shape(lambda: Llama(shape, {"clinical": LoraSpec(2, 4.0)}, labels, rngs=nnx.Rngs(0)))
        wanted = ("base", "head") if head else ("base",)
        placed = shardings(make_mesh(1, 1), nnx.state(abstract))
        placed = {path: where for path, where in placed.items() if partition_of(path) in wanted}
        state = jax.tree.map(np.asarray, huggingface.load_base(folder, abstract, placed))
        return {path: leaf[...] for path, leaf in nnx.to_flat_state(state)}

    return load


@pytest.fixture(scope="session")
def refused() -> Callable:
    """Calls a function that must end in a `UserError` of one line, and returns the line: `refused(function)`."""
    from jaxlora.errors import UserError

    def refused(function):
        with pytest.raises(UserError) as error:
            function()
        line = str(error.value)
        assert "\n" not in line
        return line

    return refused


@pytest.fixture(scope="session")
def adapted_logits() -> Callable:
    """Logits of random tokens by the base of a model with adapters put into it, all of them active:
    `adapted_logits(model, {name: adapter})`."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from jaxlora.interop import peft
    from jaxlora.models.llama import Llama

    def run(model, adapters):
        values = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}
        specs = {name: adapter.spec for name, adapter in adapters.items()}
        for name, adapter in adapters.items():
            values |= peft.to_parameters(adapter, name)
        abstract = nnx.eval_shape(lambda: Llama(model.config, specs, rngs=nnx.Rngs(0)))
        definition, state = nnx.split(abstract)
        leaves = [(path, leaf.replace(jnp.asarray(values[path]))) for path, leaf in nnx.to_flat_state(state)]
        tokens = np.random.default_rng(0).integers(0, model.config.vocab, (2, 12))
        row = tokens, np.ones_like(tokens), np.tile(np.arange(12), (2, 1))

        @jax.jit
        def logits(state):
            model = nnx.merge(definition, state)
            return model.logits(model(*row, tuple(specs)))

        return np.asarray(logits(nnx.from_flat_state(leaves)))

    return run
