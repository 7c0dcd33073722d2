"""The prompt family in packed rows, in generation, together, and under a LoRA; `tests/parity` compares it with PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.models.generate import make_generate, pad_left
from jaxlora.models.llama import Llama
from jaxlora.models.llama_shape import LlamaConfig
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.models.prompt_spec import AdaptationPromptSpec, PrefixSpec, PromptSpec, PTuningSpec
from jaxlora.train.objective import Objective

LLAMA_7B = LlamaConfig(vocab=32000, embed=4096, mlp=11008, layers=32, heads=32, kv_heads=32, head_dim=128)
# Of the paper's Table 2, both bases.
PRINTED = {
    5_242_880: PrefixSpec(20),
    2_621_440: PrefixSpec(10),
    61_440: PromptSpec(15),
    40_960: PromptSpec(10),
    16_093_696: PTuningSpec(20, "lstm", hidden=256, layers=4),
    2_171_392: PTuningSpec(1, "mlp", hidden=256),
    1_228_830: AdaptationPromptSpec(10, 30),
    8_388_608: LoraSpec(16, 32),
    2_097_152: LoraSpec(4, 4),
}
FAMILY = {
    "prefix": PrefixSpec(3),
    "projection": PrefixSpec(3, projection=True),
    "prompt": PromptSpec(3),
    "mlp": PTuningSpec(3, "mlp", hidden=5),
    "lstm": PTuningSpec(3, "lstm", hidden=5, layers=2, dropout=0.5),
    "adaptation": AdaptationPromptSpec(3, 1),
}
NOTES = [[5, 9, 3, 7, 1, 30, 11], [4, 8, 2, 2]]


@pytest.mark.parametrize("printed", PRINTED)
def test_what_is_trained_is_as_many_as_the_paper_prints(printed):
    model = nnx.eval_shape(lambda: Llama(LLAMA_7B, {"clinical": PRINTED[printed]}, rngs=nnx.Rngs(0)))
    assert partition.counts(model)["adapter/clinical"] == printed


def packed(notes, count):
    """One row of the notes, each behind its virtual tokens, and padding."""
    return rows_of([notes], count)


def rows_of(rows, count):
    """(tokens, segments, positions) of rows of notes, each note behind its virtual tokens, and padding."""
    length = max(sum(count + len(note) for note in notes) for notes in rows) + 3
    arrays = np.zeros((3, len(rows), length), np.int32)
    for row, notes in enumerate(rows):
        at = 0
        for segment, note in enumerate(notes, 1):
            here = slice(at, at + count + len(note))
            arrays[:, row, here] = (
                [*range(-1, -1 - count, -1), *note],
                [segment] * (here.stop - at),
                range(here.stop - at),
            )
            at = here.stop
    return tuple(arrays)


def hidden(model, rows, active, key=None):
    definition, state = nnx.split(model)
    run = jax.jit(lambda state, *rows: nnx.merge(definition, state)(*rows, active, key))
    return np.asarray(run(state, *rows))


@pytest.mark.parametrize("kind", FAMILY)
def test_packed_notes_are_computed_as_each_alone(kind, random_llama):
    model, active = random_llama({"clinical": FAMILY[kind]}), ("clinical",)
    count = FAMILY[kind].virtual_tokens
    rows = packed(NOTES, count)
    together = hidden(model, rows, active)[rows[0] * rows[1] > 0]
    apart = rows_of([[note] for note in NOTES], count)
    np.testing.assert_allclose(together, hidden(model, apart, active)[apart[0] * apart[1] > 0], atol=1e-5)
    base = rows_of([[note] for note in NOTES], 0)
    assert np.abs(together - hidden(model, base, ())[base[1] > 0]).max() > 0.01


def test_a_fresh_adaptation_prompt_changes_nothing():
    shape = LlamaConfig(vocab=32, embed=16, mlp=24, layers=2, heads=4, kv_heads=2, head_dim=4)
    model = Llama(shape, {"clinical": AdaptationPromptSpec(3, 1)}, rngs=nnx.Rngs(0))
    rows = packed(NOTES, 0)
    np.testing.assert_array_equal(hidden(model, rows, ("clinical",)), hidden(model, rows, ()))


@pytest.mark.parametrize("kind", [PrefixSpec, PromptSpec])
def test_two_adapters_have_their_virtual_tokens_one_after_the_other(kind, random_llama):
    parted = random_llama({"clinical": kind(2), "downstream": kind(1)})
    whole = random_llama({"clinical": kind(3)})
    tables = [parted.adapters[name].table[...] for name in ("clinical", "downstream")]
    nnx.update(whole, nnx.state(random_llama()))
    nnx.update(parted, nnx.state(random_llama()))
    whole.adapters["clinical"].table[...] = jnp.concatenate(tables)
    rows = packed(NOTES, 3)
    words = rows[0] * rows[1] > 0
    found = hidden(parted, rows, ("clinical", "downstream"))[words]
    np.testing.assert_allclose(found, hidden(whole, rows, ("clinical",))[words], atol=1e-6)
    other = hidden(parted, rows, ("downstream", "clinical"))[words]
    assert np.abs(found - other).max() > 1e-3 or kind is PrefixSpec  # keys that are not rotated have no order


@pytest.mark.parametrize("kind", ["prefix", "lstm", "adaptation"])
def test_it_is_trained_or_frozen_under_a_lora(kind, random_llama):
    specs = {"clinical": FAMILY[kind], "downstream": LoraSpec(2, 4.0)}
    model, active = random_llama(specs, labels=2), ("clinical", "downstream")
    count = FAMILY[kind].virtual_tokens
    tokens, segments, positions = packed(NOTES, count)
    batch = {"tokens": tokens, "segments": segments, "positions": positions, "notes": np.asarray([[1, 2]])}
    batch["labels"] = np.asarray([[0, 1]])
    objective = Objective("multiclass", active)
    definition, params, frozen = partition.split(model, ("clinical", "downstream"))

    @jax.jit
    def gradients(params, frozen):
        return jax.grad(lambda p: objective.loss(nnx.merge(definition, p, frozen), batch))(params)

    found = dict(nnx.to_flat_state(gradients(params, frozen)))
    owners = {partition.partition_of(path) for path in found}
    assert owners == {"adapter/clinical", "adapter/downstream"}
    assert all(np.abs(np.asarray(leaf[...])).max() > 0 for leaf in found.values())
    both = hidden(model, (tokens, segments, positions), active)
    one = hidden(model, (tokens, segments, positions), ("clinical",))
    assert np.abs((both - one)[tokens * segments > 0]).max() > 0.01


def test_dropout_falls_between_the_layers_of_the_lstm(random_llama):
    rows = packed(NOTES, 3)
    model = random_llama({"clinical": FAMILY["lstm"]})
    one, same, other = (hidden(model, rows, ("clinical",), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    single = random_llama({"clinical": PTuningSpec(3, hidden=5, layers=1, dropout=0.5)})
    with_key, without = (hidden(single, rows, ("clinical",), key) for key in (jax.random.key(0), None))
    np.testing.assert_array_equal(with_key, without)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "adaptation"])
def test_generation_goes_on_as_without_a_cache(kind, random_llama):
    model, active, new = random_llama({"clinical": FAMILY[kind]}), ("clinical",), 4
    count = FAMILY[kind].virtual_tokens
    definition, state = nnx.split(model)
    prompts = [[*range(-1, -1 - count, -1), *note] for note in NOTES]
    found = np.asarray(make_generate(definition, active, new, ())(state, *pad_left(prompts, 12), jax.random.key(0)))
    for note, ids in zip(NOTES, found.tolist(), strict=True):
        rows = packed([[*note, *ids]], count)
        states = hidden(model, rows, active)[0, count + len(note) - 1 :][:new]
        assert np.asarray(model.logits(jnp.asarray(states))).argmax(axis=-1).tolist() == ids
