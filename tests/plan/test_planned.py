"""The verb's decisions, the compiler's word given."""

import json

import jax
import pytest

from jaxlora.chips import GIB
from jaxlora.config import adapter, default
from jaxlora.errors import UserError
from jaxlora.plan import plan as verb
from jaxlora.plan.program import Program, TooLarge

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
}
HLO = "ENTRY %main (p: f32[8]) -> f32[8] {\n  ROOT %p = f32[8]{0} parameter(0)\n}\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    config = default()
    config.base, config.batch_size, config.data.length = str(tmp_path), 2, 32
    config.adapters.clinical = adapter(4, 8)
    config.active = config.trainable = ("clinical",)
    return config


@pytest.fixture
def compiler(monkeypatch):
    """A compiler for one device, to which a program is as large as it is told for its remat level, in GiB."""
    compiled = []

    def make(sizes):
        def answer(config, aim, mesh):
            compiled.append((config.remat, config.accumulate, config.quantize))
            size = sizes.get(config.remat, 99) * GIB
            if size > 15.75 * GIB:
                raise TooLarge(size, 15.75 * GIB)
            kinds = {"base": GIB, "adapters and head": 0, "optimizer": 0, "batch": 0}
            return Program(kinds, GIB, int(size) - GIB, 0, 0, 0, HLO, 1.0, 1e9)

        monkeypatch.setattr(verb, "compiled", answer)
        monkeypatch.setattr(verb, "devices_of", lambda slice_: jax.devices()[:1])
        return compiled

    return make


def test_a_run_that_fits_is_compiled_once(config, compiler, tmp_path):
    compiled = compiler({"none": 8})
    text, fits = verb.plan(config, "v5e:1x1", output=str(tmp_path / "out"))
    assert fits
    assert compiled == [("none", 1, "")]
    assert text == (tmp_path / "out" / "plan.md").read_text() and "**Fits**: 8.00 of 15.75 GiB" in text
    report = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert report["memory_gib"]["temporaries"] == 7.0 and report["flops_per_token"]["model"] > 0


def test_what_does_not_fit_is_offered_what_was_compiled(config, compiler):
    compiled = compiler({"none": 20, "save_dots": 16, "save_qkv": 12, "full": 6})
    report = verb.planned(config, "v5e:1x1")
    assert not report["fits"] and report["needed_gib"] == 20 and not report["at_least"]
    assert ["--config.remat=save_qkv"] in [each["flags"] for each in report["suggestions"]]
    assert all(each["gib"] in (12, 6) for each in report["suggestions"])
    assert ("save_qkv", 1, "") in compiled


def test_what_arithmetic_refuses_is_not_compiled(config, compiler):
    compiled = compiler({})
    report = verb.planned(config, "v5e:1x1", hbm_gib=1e-5)
    assert not report["fits"] and report["at_least"] and not report["suggestions"] and not compiled


def test_a_search_takes_the_fastest_that_fits(config, compiler):
    compiler({"none": 20, "save_dots": 16, "save_qkv": 12, "full": 6})
    report = verb.planned(config, "v5e:1x1", search=True)
    assert report["fits"] and report["flags"] == ["--config.remat=save_qkv"] and report["remat"] == "save_qkv"
    assert {tuple(each["flags"]) for each in report["refused"]} >= {("--config.remat=save_dots",)}


def test_users_mistakes(config, compiler):
    compiler({})
    with pytest.raises(UserError, match="config.mesh"):
        config.mesh.fsdp = 2
        verb.planned(config, "v5e:1x1")
    with pytest.raises(UserError, match="config.batch_size is 3"):
        config.mesh.fsdp, config.batch_size, config.accumulate = 1, 3, 2
        verb.planned(config, "v5e:1x1")
    with pytest.raises(UserError, match="config.base is not set"):
        config.base = ""
        verb.planned(config, "v5e:1x1")
