"""Each row of the paper's tables trains what it says it trains, bit for bit, and nothing else."""

import hashlib

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlora import partition
from jaxlora.config import default
from jaxlora.errors import UserError
from jaxlora.models.lora_spec import LoraSpec
from jaxlora.rows import ROWS, TABLE, TFIDF, set_row, title_of
from jaxlora.train.mesh import make_mesh
from jaxlora.train.objective import Objective
from jaxlora.train.optimizer import make_optimizer
from jaxlora.train.step import init_state, make_train_step

SPECS = {"clinical": LoraSpec(3, 6.0), "downstream": LoraSpec(2, 2.0)}


def digests(state) -> dict[str, str]:
    """The SHA-256 of each partition's bytes, an adapter's by its bare name."""
    found = {}
    for path, leaf in sorted(nnx.to_flat_state(state)):
        digest = found.setdefault(partition.partition_of(path).removeprefix("adapter/"), hashlib.sha256())
        digest.update(np.asarray(leaf[...]).tobytes())
    return {name: digest.hexdigest() for name, digest in found.items()}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_training_changes_what_the_row_trains_and_no_other_bit(random_llama, packed_batch, row):
    model = random_llama({name: SPECS[name] for name in row.adapters}, labels=2)
    before = digests(nnx.state(model))
    assert set(before) == {"base", "head", *row.adapters}
    definition, params, frozen = partition.split(model, row.trainable)
    mesh = make_mesh(1, 1)
    optimizer = make_optimizer(optax.constant_schedule(1e-2), weight_decay=0.01, clip=0.0)
    state = init_state(params, optimizer, mesh)
    step = make_train_step(definition, optimizer, Objective("multiclass", row.active), False, state, mesh)
    for update in range(2):
        state, _ = step(state, frozen, packed_batch, jax.random.key(update))
    after = digests(nnx.merge_state(state.params, frozen))
    assert {name for name in before if before[name] != after[name]} == set(row.trainable)


def test_downstream_adapter_counts_where_active_and_not_as_published(random_llama, packed_batch):
    def logits(model, row):
        definition, state = nnx.split(model)
        objective = Objective("multiclass", ROWS[row].active)
        return np.asarray(jax.jit(lambda s: objective.note_logits(nnx.merge(definition, s), packed_batch))(state))

    both = random_llama(SPECS, labels=2)
    corrected, published = (logits(both, f"frozen_downstream{mode}") for mode in ("", "_as_published"))
    assert np.abs(corrected - published).max() > 1e-2
    for projection in (both.blocks.q_proj, both.blocks.v_proj):
        projection.adapters["downstream"].b[...] *= -100.0
    np.testing.assert_array_equal(logits(both, "frozen_downstream_as_published"), published)
    assert np.abs(logits(both, "frozen_downstream") - corrected).max() > 1e-2
    for projection in (both.blocks.q_proj, both.blocks.v_proj):
        del projection.adapters["downstream"]
    np.testing.assert_array_equal(logits(both, "frozen"), published)


def test_what_is_trained_enters_the_forward_pass():
    for row in ROWS.values():
        assert set(row.trainable) <= {*row.active, "head", "base"} and set(row.active) <= set(row.adapters)


def test_the_table_is_the_six_rows_of_the_paper():
    settings = {(ROWS[name].active, ROWS[name].trainable) for name in TABLE}
    c, d = "clinical", "downstream"
    assert settings == {
        ((), ("head",)),
        ((d,), (d, "head")),
        ((c,), ("head",)),
        ((c, d), (d, "head")),
        ((c,), (c, "head")),
        ((c, d), (c, d, "head")),
    }


def test_set_row_sets_the_papers_sizes():
    config = default()
    set_row(config, "trainable_downstream")
    assert {n: (a.rank, a.alpha) for n, a in config.adapters.items()} == {
        "clinical": (16, 32.0),
        "downstream": (8, 16.0),
    }
    assert config.active == ("clinical", "downstream") and config.trainable == ("clinical", "downstream", "head")
    set_row(config, "head_only")
    assert not config.adapters and config.active == () and config.trainable == ("head",)


def test_unknown_row_names_the_nearest():
    with pytest.raises(UserError, match="no row 'frozn'; did you mean 'frozen'"):
        set_row(default(), "frozn")


def test_titles_follow_from_the_settings():
    for row in (*ROWS.values(), TFIDF):
        assert title_of(row.active[::-1], row.trainable, row.adapters) == row.title
    assert title_of(("a", "b"), ("b",), ("a", "b")) == "active a + b; trainable b"
