"""Logits that transformers gave tiny models of every family; the weights are made anew from a seed.

`tests/parity/make_goldens.py` writes the file; `tests/parity/test_models.py` compares many more with torch at hand.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jaxlora.interop import huggingface
from jaxlora.interop.llama_config import read_config
from jaxlora.models.llama import Llama
from jaxlora.train.mesh import make_mesh, shardings
from tests.goldens.weights import make_weights

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "models.json").read_text())
PADDING = 7


def load(golden, folder):
    """The definition and the state of a family's model."""
    (folder / "config.json").write_text(json.dumps(golden["config"]))
    save_file(make_weights(golden["shapes"], golden["seed"]), folder / "model.safetensors")
    shape = read_config(folder)
    abstract = nnx.eval_shape(lambda: Llama(shape, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    return definition, huggingface.load_base(folder, abstract, shardings(make_mesh(1, 1), state))


@functools.partial(jax.jit, static_argnums=0)
def logits(definition, state, *rows):
    """Of all positions of a batch."""
    model = nnx.merge(definition, state)
    return model.logits(model(*rows))


@pytest.mark.parametrize("family", GOLDENS)
def test_logits_are_those_that_transformers_gave_with_padding_on_either_side(family, tmp_path):
    golden = GOLDENS[family]
    text, at = golden["tokens"], np.asarray(golden["positions"])
    # The padding is a token of the text, as with bases whose padding token is that of the end: only segments tell.
    tokens, segments, positions = np.zeros((3, 2, len(text) + PADDING), np.int32)
    tokens[:] = text[-1]
    left, right = (0, slice(PADDING, None)), (1, slice(len(text)))
    for here in (left, right):
        tokens[here], segments[here], positions[here] = text, 1, np.arange(len(text))
    found = logits(*load(golden, tmp_path), tokens, segments, positions)
    for here in (left, right):
        np.testing.assert_allclose(found[here][at], golden["logits"], atol=2e-5, rtol=0)
