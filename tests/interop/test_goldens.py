"""Logits that transformers gave tiny models of every family; the weights are made anew from a seed.

`tests/parity/make_goldens.py` writes the file; `tests/parity/test_models.py` compares many more with torch at hand.
"""

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

pytestmark = pytest.mark.usefixtures("quick_compiles")
GOLDENS = Path(__file__).parents[1] / "goldens" / "models.json"


@pytest.mark.parametrize("family", json.loads(GOLDENS.read_text()))
def test_logits_are_those_that_transformers_gave(family, tmp_path):
    golden = json.loads(GOLDENS.read_text())[family]
    (tmp_path / "config.json").write_text(json.dumps(golden["config"]))
    save_file(make_weights(golden["shapes"], golden["seed"]), tmp_path / "model.safetensors")
    shape = read_config(tmp_path)
    abstract = nnx.eval_shape(lambda: Llama(shape, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    state = huggingface.load_base(tmp_path, abstract, shardings(make_mesh(1, 1), state))

    @jax.jit
    def run(state, tokens):
        model, row = nnx.merge(definition, state), np.arange(tokens.shape[1], dtype=np.int32)[None]
        return model.logits(model(tokens, np.ones_like(row), row))[0]

    logits = run(state, np.asarray([golden["tokens"]], np.int32))
    np.testing.assert_allclose(logits[np.asarray(golden["positions"])], golden["logits"], atol=2e-5, rtol=0)
