import dataclasses
import json
import types

import numpy as np
import pytest

from jaxlora.chips import GIB
from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.plan.refusal import _remedy, check_fits
from jaxlora.train.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """As JAX describes a chip of v5e, where shapes are laid over it and nothing runs."""

    coords: tuple[int, int, int]
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"
    process_index: int = 0


@pytest.fixture
def seven_billion(tmp_path):
    shape = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = default()
    config.base, config.dtype, config.batch_size, config.data.length = str(tmp_path), "bfloat16", 1, 2048
    config.adapters.clinical = adapter(16, 32)
    config.active = config.trainable = ("clinical",)
    return config


def test_a_run_that_cannot_fit_is_refused_with_its_arithmetic(seven_billion):
    with pytest.raises(UserError, match=r"^the run does not fit: .* base 12\.55 \+ .* and has 12\.00; ") as refused:
        check_fits(seven_billion, 0, make_mesh(1, 1), 12 * GIB)
    assert "\n" not in str(refused.value)


def test_a_tpu_run_that_cannot_fit_is_told_what_may(seven_billion):
    """By arithmetic over the devices at hand, the fewest changes first; the message is the command that proves it."""
    chips = [Chip((i % 2, i // 2, 0)) for i in range(8)]
    seven_billion.batch_size = 8
    mesh = types.SimpleNamespace(
        devices=np.asarray(chips).reshape(8, 1, 1), shape={"data": 8, "fsdp": 1, "tensor": 1}, size=8
    )
    assert _remedy(seven_billion, 0, mesh, 12 * GIB, 1) == (
        "by arithmetic --config.mesh.fsdp=4 may fit; ask before: jaxlora plan --config=... --topology=v5e:2x4 "
        "--config.mesh.fsdp=4"
    )
    several = _remedy(seven_billion, 0, mesh, 12 * GIB, members=4)
    assert several == "ask what does: jaxlora plan --config=... --topology=v5e:2x4 --search"


def test_a_run_that_may_fit_is_let_through(seven_billion):
    assert check_fits(seven_billion, 0, make_mesh(1, 1), 16 * GIB) is None
    assert check_fits(seven_billion, 0, make_mesh(1, 1)) is None  # a CPU does not say what it has


def test_what_remat_could_save_is_not_held_against_a_run(seven_billion):
    seven_billion.remat, seven_billion.batch_size = "none", 4
    assert check_fits(seven_billion, 0, make_mesh(1, 1), 18 * GIB) is None
