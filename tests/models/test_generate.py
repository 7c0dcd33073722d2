"""Generation with a cache against the model without one, and against transformers' tokens."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from jaxlora.config import default
from jaxlora.models.generate import make_generate, nucleus, pad_left
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.rotary import Rope
from jaxlora.train.assemble import assemble
from jaxlora.train.mesh import make_mesh

PROMPTS = [[5, 9, 3, 7, 1, 30, 11], [4], [8, 2, 2, 19]]
SPECS = {"clinical": LoraSpec(3, 6.0, targets=("all-linear",), dora=True)}


def generate(model, prompts, new_tokens, active=(), stop=(), seed=0, **sampling):
    definition, state = nnx.split(model)
    run = make_generate(definition, tuple(active), new_tokens, stop, **sampling)
    return np.asarray(run(state, *pad_left(prompts, 8), jax.random.key(seed)))


def without_cache(model, prompts, new_tokens, active):
    """Greedy tokens, the whole text computed anew for each."""
    definition, state = nnx.split(model)
    length = max(map(len, prompts)) + new_tokens

    @jax.jit
    def logits(state, tokens, segments):
        model = nnx.merge(definition, state)
        return model.logits(model(tokens, segments, np.arange(length)[None] * segments, active))

    found = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(new_tokens):
            row = np.pad(ids, (0, length - len(ids)))[None]
            segments = (np.arange(length) < len(ids))[None].astype(np.int32)
            ids.append(int(logits(state, row, segments)[0, len(ids) - 1].argmax()))
        found.append(ids[len(prompt) :])
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"window": 3, "biases": ("q_proj", "k_proj", "v_proj")},
        {"tied": True, "kv_heads": 4, "rope": Rope(500.0, "llama3", 8.0, 6)},
        {"rope": Rope(100.0, "linear", 2.0)},
    ],
    ids=["llama", "window and biases", "llama3", "linear"],
)
def test_the_cache_changes_no_token_whatever_the_padding(random_llama, fields):
    model = random_llama(SPECS, layers=2, **fields)
    found = generate(model, PROMPTS, 6, ("clinical",))
    assert found.tolist() == without_cache(model, PROMPTS, 6, ("clinical",))
    assert len({tuple(row) for row in found}) == 3


def test_active_adapters_alone_enter(random_llama):
    model = random_llama(SPECS, layers=2)
    assert (generate(model, PROMPTS, 6) != generate(model, PROMPTS, 6, ("clinical",))).any()


def test_forty_tokens_are_those_of_transformers(shared_data):
    golden = json.loads((shared_data / "tinyllama260k" / "golden_base.json").read_text())
    config = default()
    config.base = str(shared_data / "tinyllama260k" / "hf")
    wanted = golden["greedy_from_bos_40"]
    assert wanted[0] == 1 and len(wanted) == 41
    found = generate(assemble(config, 0, make_mesh(1, 1)), [[1]], 40)
    assert list(found[0]) == wanted[1:]


def test_a_row_ends_at_a_stop_token_and_the_others_go_on(random_llama):
    model = random_llama(layers=2)
    whole = generate(model, PROMPTS, 6)
    stop = int(whole[0, 2])
    found = generate(model, PROMPTS, 6, stop=(stop,))
    for row, full in zip(found, whole, strict=True):
        ends = np.flatnonzero(full == stop)
        kept = ends[0] + 1 if len(ends) else 6
        np.testing.assert_array_equal(row[:kept], full[:kept])
        assert (row[kept:] == stop).all()


def test_sampling_follows_the_seed(random_llama):
    model = random_llama(layers=2)
    first, again, other = (generate(model, PROMPTS, 6, temperature=1.0, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_low_temperature_or_a_small_top_p_is_greedy(random_llama):
    model = random_llama(layers=2)
    greedy = generate(model, PROMPTS, 6)
    np.testing.assert_array_equal(generate(model, PROMPTS, 6, temperature=1e-4), greedy)
    np.testing.assert_array_equal(generate(model, PROMPTS, 6, temperature=1.0, top_p=1e-6), greedy)


def test_samples_have_the_models_probabilities(random_llama):
    model = random_llama(layers=1)
    definition, state = nnx.split(model)
    hidden = model(np.asarray([[5]]), np.ones((1, 1), np.int32), np.zeros((1, 1), np.int32))
    wanted = np.asarray(jax.nn.softmax(model.logits(hidden)[0, 0] / 2.0))
    run = make_generate(definition, (), 1, (), temperature=2.0)
    found = np.asarray(run(state, *pad_left([[5]] * 4000, 1), jax.random.key(0)))[:, 0]
    shares = np.bincount(found, minlength=32) / 4000
    assert np.abs(shares - wanted).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("top_p, kept", [(0.45, 1), (0.5, 1), (0.6, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_the_nucleus_is_the_fewest_tokens_that_reach_it(top_p, kept):
    probabilities = np.asarray([0.05, 0.5, 0.15, 0.3], np.float32)
    found = np.isfinite(nucleus(np.log(probabilities)[None], top_p))[0]
    assert set(np.flatnonzero(found)) == set(np.argsort(-probabilities)[:kept])


def test_prompts_are_padded_on_the_left():
    tokens, lengths = pad_left([[3, 4], [5]], 3)
    np.testing.assert_array_equal(tokens, [[0, 3, 4], [0, 0, 5]])
    np.testing.assert_array_equal(lengths, [2, 1])
