"""Adapters that PEFT made and the logits that it gave with them; the base is made anew from a seed.

`tests/parity/make_peft_goldens.py` writes the files; `tests/parity/test_peft.py` compares many more with torch at hand.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlora.interop import huggingface, peft
from jaxlora.interop.llama_config import read_config
from jaxlora.models.llama import Llama
from jaxlora.train.mesh import make_mesh, shardings
from tests.goldens.weights import make_weights

pytestmark = pytest.mark.usefixtures("quick_compiles")
GOLDENS = Path(__file__).parents[1] / "goldens" / "peft"
OPTIONS = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """What logits.json holds, with the base's folder."""
    raw, folder = json.loads((GOLDENS / "logits.json").read_text()), tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(raw["config"]))
    save_file(make_weights(raw["shapes"], raw["seed"]), folder / "model.safetensors")
    return {**raw, "base": folder}


def logits(base, adapter, notes):
    """Of every token of the first note, or of each note where there is a head."""
    labels, values = 0 if adapter.head is None else adapter.head.shape[1], peft.to_parameters(adapter, "clinical")
    shape = read_config(base)
    abstract = nnx.eval_shape(lambda: Llama(shape, {"clinical": adapter.spec}, labels, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    placed = {path: where for path, where in shardings(make_mesh(1, 1), state).items() if path not in values}
    added = [
        (path, leaf.replace(jnp.asarray(values[path]))) for path, leaf in nnx.to_flat_state(state) if path in values
    ]
    state = nnx.merge_state(huggingface.load_base(base, abstract, placed), nnx.from_flat_state(added))
    length = max(map(len, notes))
    tokens = np.asarray([note + [0] * (length - len(note)) for note in notes])
    segments = np.asarray([[1] * len(note) + [0] * (length - len(note)) for note in notes])

    @jax.jit
    def run(state):
        model = nnx.merge(definition, state)
        hidden = model(tokens, segments, np.tile(np.arange(length), (len(notes), 1)), ("clinical",))
        return model.head(hidden, segments, 1)[:, 0] if labels else model.logits(hidden)[0]

    return np.asarray(run(state))


@pytest.mark.parametrize("option", OPTIONS)
def test_logits_are_those_that_peft_gave(option, golden):
    adapter = peft.read(GOLDENS / option, read_config(golden["base"]))
    wanted = golden["logits"][option]
    np.testing.assert_allclose(logits(golden["base"], adapter, golden["notes"]), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_written_holds_the_tensors_of_peft(option, golden, tmp_path):
    peft.write(tmp_path, peft.read(GOLDENS / option, read_config(golden["base"])), "base")
    wanted = load_file(GOLDENS / option / "adapter_model.safetensors")
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_every_option_has_its_goldens_and_they_are_small(golden):
    assert set(OPTIONS) == set(golden["logits"]) and len(OPTIONS) == 8
    assert sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file()) < 250_000
