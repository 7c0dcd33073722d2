"""Adapters that PEFT made and what it computed with them; the bases are made anew from a seed.

`tests/parity/make_peft_goldens.py` writes the files; `tests/parity/test_peft.py` compares many more with torch at hand.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlora import partition
from jaxlora.interop import huggingface, peft
from jaxlora.interop.llama_config import read_config
from jaxlora.interop.merge import write_merged
from jaxlora.models.llama import Llama
from jaxlora.train.mesh import make_mesh, shardings
from jaxlora.train.objective import Objective
from tests.goldens.weights import make_weights

GOLDENS = Path(__file__).parents[1] / "goldens" / "peft"
VALUES = json.loads((GOLDENS / "values.json").read_text())
OPTIONS = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())
MERGED = [option for option, values in VALUES["options"].items() if "merged" in values]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of the base that an option's adapter is for, `folder_of(option)`."""

    @functools.cache
    def make(base):
        raw, folder = VALUES["bases"][base], tmp_path_factory.mktemp("base")
        (folder / "config.json").write_text(json.dumps(raw["config"]))
        save_file(make_weights(raw["shapes"], raw["seed"]), folder / "model.safetensors")
        return folder

    return lambda option: make(VALUES["options"][option]["base"])


@pytest.fixture(scope="module")
def computed(folder_of):
    """(the adapter, its logits, the loss, its gradients by path) of an option, computed once, `computed(option)`."""

    @functools.cache
    def compute(option):
        folder = folder_of(option)
        adapter = peft.read(GOLDENS / option, read_config(folder))
        labels, values = 0 if adapter.head is None else adapter.head.shape[1], peft.to_parameters(adapter, "clinical")
        model = load(folder, labels, {"clinical": adapter.spec}, values)
        definition, params, frozen = partition.split(model, ("clinical", "head") if labels else ("clinical",))
        objective = Objective("multiclass" if labels else "lm", ("clinical",))

        @jax.jit
        def run(params, frozen, rows):
            loss = jax.value_and_grad(lambda params: objective.loss(nnx.merge(definition, params, frozen), rows))
            return logits(nnx.merge(definition, params, frozen), rows), *loss(params)

        found, loss, gradients = run(params, frozen, batch())
        return adapter, found, loss, {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}

    return compute


def load(folder, labels, specs, values):
    """The model of a base's folder, with the parameters that `values` gives by path."""
    shape = read_config(folder)
    abstract = nnx.eval_shape(lambda: Llama(shape, specs, labels, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(abstract)
    placed = {path: where for path, where in shardings(make_mesh(1, 1), state).items() if path not in values}
    added = [
        (path, leaf.replace(jnp.asarray(values[path]))) for path, leaf in nnx.to_flat_state(state) if path in values
    ]
    state = nnx.merge_state(huggingface.load_base(folder, abstract, placed), nnx.from_flat_state(added))
    return nnx.merge(definition, state)


def batch():
    """Every note padded on the right and again on the left, which changes no mean: rows 0, 2, ... and 1, 3, ..."""
    notes, width = VALUES["notes"], 3 + max(map(len, VALUES["notes"]))
    tokens, segments, positions = np.zeros((3, 2 * len(notes), width), np.int32)
    for i, note in enumerate(notes):
        for row, start in ((2 * i, 0), (2 * i + 1, width - len(note))):
            here = row, slice(start, start + len(note))
            tokens[here], segments[here], positions[here] = note, 1, np.arange(len(note))
    rows = {"tokens": tokens, "segments": segments, "positions": positions}
    return rows | {"notes": np.ones((len(tokens), 1), np.int32), "labels": np.repeat(VALUES["labels"], 2)[:, None]}


def logits(model, rows, active=("clinical",)):
    """Of every position of the first note's two rows, or of each row where there is a head."""
    hidden = model(rows["tokens"], rows["segments"], rows["positions"], active)
    return model.head(hidden, rows["segments"], 1)[:, 0] if hasattr(model, "head") else model.logits(hidden[:2])


def assert_same_logits(found, wanted):
    length = len(VALUES["notes"][0])
    sides = (found[0, :length], found[1, -length:]) if found.ndim == 3 else (found[::2], found[1::2])
    for side in sides:
        np.testing.assert_allclose(side, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("option", OPTIONS)
def test_logits_are_those_that_peft_gave(option, computed):
    assert_same_logits(computed(option)[1], VALUES["options"][option]["logits"])


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_are_those_that_peft_gave(option, computed):
    """Of each its norm and its product with a random vector, which no other gradient of that norm has."""
    adapter, _, loss, gradients = computed(option)
    golden = VALUES["options"][option]
    assert float(loss) == pytest.approx(golden["loss"], rel=1e-5)
    layers = peft.from_parameters(gradients, "clinical", adapter.spec, {}).weights
    found = {f"{module}.{leaf}": x for module, here in layers.items() for leaf, x in here.items()}
    stacked = sum(float(np.square(x).sum()) for path, x in gradients.items() if path[0] != "head")
    assert stacked == pytest.approx(sum(float(np.square(x).sum()) for x in found.values()))  # padded ranks have none
    found |= {"head": gradients["head", "kernel"]} if adapter.head is not None else {}
    assert set(found) == set(golden["gradients"])
    for key, (norm, product) in golden["gradients"].items():
        gradient = found[key].astype(np.float64).ravel()
        direction = np.random.RandomState(VALUES["bases"][golden["base"]]["seed"]).randn(gradient.size)
        assert abs(np.linalg.norm(gradient) - norm) <= 1e-4 * norm, key
        assert abs(gradient @ direction - product) <= 1e-4 * norm, key


@pytest.mark.parametrize("option", MERGED)
def test_a_merged_model_gives_the_logits_of_the_one_that_peft_merged(option, folder_of, tmp_path):
    adapter = peft.read(GOLDENS / option, read_config(folder_of(option)))
    labels = [] if adapter.head is None else [f"class {i}" for i in range(adapter.head.shape[1])]
    kind = "multiclass" if labels else "lm"
    write_merged(tmp_path, folder_of(option), [adapter], adapter.head, kind, labels, pad=0)
    found = jax.jit(lambda model: logits(model, batch(), active=()))(load(tmp_path, len(labels), None, {}))
    assert_same_logits(found, VALUES["options"][option]["merged"])


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_written_holds_the_tensors_of_peft(option, folder_of, tmp_path):
    peft.write(tmp_path, peft.read(GOLDENS / option, read_config(folder_of(option))), "base")
    wanted = load_file(GOLDENS / option / "adapter_model.safetensors")
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_every_option_has_its_goldens_and_they_are_small():
    assert set(OPTIONS) == set(VALUES["options"]) and len(OPTIONS) == 11 and len(MERGED) == 3
    assert sum(path.stat().st_size for path in GOLDENS.parent.rglob("*") if path.suffix != ".pyc") < 300_000
