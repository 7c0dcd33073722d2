from jaxlora.plan.markdown import markdown

REPORT = {
    "slice": "v3:2x2",
    "chips": 4,
    "devices": 8,
    "device_gib": 15.48,
    "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
    "kind": "binary",
    "labels": 2,
    "kind_source": "assumed",
    "rows": 16,
    "length": 512,
    "accumulate": 2,
    "remat": "full",
    "dtype": "bfloat16",
    "quantize": "int8",
    "flags": [],
    "fits": False,
    "needed_gib": 20.0,
    "spare_gib": -4.52,
    "at_least": True,
    "refused": [{"flags": ["--config.remat=full"], "gib": 17.0}],
    "suggestions": [{"flags": ["--config.quantize=nf4"], "gib": 9.0, "update_seconds": 0.25}],
}


def test_what_does_not_fit_is_told_with_what_does():
    text = markdown(REPORT)
    assert "# v3:2x2: 4 chips, 8 devices" in text and "16 rows of 512 tokens in 2 parts" in text
    assert "**Does not fit**: at least 20.00 of 15.48 GiB a device, 4.52 too much (by arithmetic" in text
    assert "- does not fit (17.00 GiB): `--config.remat=full`" in text
    assert "- fits (9.00 GiB; an update takes at least 0.250 s): `--config.quantize=nf4`" in text


def test_nothing_that_fits_is_said_too():
    assert "take a larger slice" in markdown(REPORT | {"suggestions": []})


def test_what_fits_is_told_by_kind():
    costs = {
        "fits": True,
        "spare_gib": 5.0,
        "at_least": False,
        "memory_gib": {"base": 1.5, "temporaries": 9.0},
        "compile_seconds": 61.0,
        "flops_per_token": {"model": 30e9, "hardware": 45e9},
        "collectives": [{"kind": "all-gather", "devices": 8, "count": 64, "received_gib": 12.5}],
        "update_seconds": {"compute": 0.5, "memory": 0.1, "links": 0.2, "bound": 0.5, "by": "compute"},
        "tokens_per_second_at_most": 16384.0,
    }
    text = markdown(REPORT | costs)
    assert "**Fits**: 20.00 of 15.48 GiB a device, 5.00 to spare." in text
    assert "| base | 1.500 |" in text and "| together | 20.000 |" in text
    assert "30.00 GFLOP a token, 45.00 with what is computed again; compiled in 61 s." in text
    assert "Bound by compute: at most 16,384 tokens/s." in text
    assert "| all-gather | 8 | 64 | 12.500 |" in text
