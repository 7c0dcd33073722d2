"""Which layers an adapter applies to, and with which size."""

import pytest

from jaxlora.errors import UserError
from jaxlora.models.lora_spec import MODULES, LoraSpec, matches, module_name, module_names


def applies_to(spec, layers=4):
    return set(spec.sizes(layers))


@pytest.mark.parametrize(
    "pattern, module, found",
    [
        ("q_proj", "model.layers.3.self_attn.q_proj", True),
        ("self_attn.q_proj", "model.layers.3.self_attn.q_proj", True),
        ("model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.q_proj", True),
        ("proj", "model.layers.3.self_attn.q_proj", False),
        ("layers.1.self_attn.q_proj", "model.layers.11.self_attn.q_proj", False),
        (r".*\.[0-3]\.mlp\..*", "model.layers.2.mlp.up_proj", True),
        (r".*\.[0-3]\.mlp\..*", "model.layers.5.mlp.up_proj", False),
        ("q_proj|k_proj", "model.layers.0.self_attn.k_proj", True),
    ],
)
def test_a_pattern_is_the_end_of_a_name_or_a_regular_expression(pattern, module, found):
    assert matches(pattern, module) is found


def test_targets_are_joined_and_layers_restrict_them():
    spec = LoraSpec(2, 4.0, targets=("q_proj", ".*0.mlp.*"), layers=(0, 2))
    assert applies_to(spec) == {
        *(module_name(name, 0) for name in ("q_proj", "gate_proj", "up_proj", "down_proj")),
        module_name("q_proj", 2),
    }


def test_all_linear_is_all_seven():
    assert applies_to(LoraSpec(2, 4.0, targets=("all-linear",)), 2) == set(module_names(2))
    assert len(module_names(2)) == 2 * len(MODULES) == 14


def test_the_first_pattern_that_matches_holds():
    spec = LoraSpec(
        8, 16.0, ranks=(("layers.1.self_attn.q_proj", 2), ("q_proj", 4)), alphas=(("v_proj", 1.0),), rslora=True
    )
    sizes = {module[13:]: (size.rank, size.alpha, size.scale) for module, size in spec.sizes(2).items()}
    assert sizes == {
        "0.self_attn.q_proj": (4, 16.0, 8.0),
        "0.self_attn.v_proj": (8, 1.0, 1 / 8**0.5),
        "1.self_attn.q_proj": (2, 16.0, 16 / 2**0.5),
        "1.self_attn.v_proj": (8, 1.0, 1 / 8**0.5),
    }


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": 0}, "x.rank is 0 in model.layers.0.self_attn.q_proj; it must be 1 or more"),
        ({"ranks": (("v_proj", -1),)}, "x.ranks is -1 in model.layers.0.self_attn.v_proj"),
        ({"dropout": 1.0}, "x.dropout is 1.0"),
        ({"targets": ()}, "x.targets is empty"),
        (
            {"targets": ("qproj",)},
            "x.targets: 'qproj' matches no layer; valid are q_proj, k_proj, v_proj",
        ),
        ({"targets": ("q_proj", "lm_head")}, "x.targets: 'lm_head' matches no layer"),
        ({"targets": ("q_(proj",)}, "x.targets: 'q_(proj' is no regular expression"),
        ({"ranks": (("up_proj", 2),)}, "x.ranks: 'up_proj' matches no layer; valid are q_proj, v_proj"),
        ({"alphas": (("layers.9.*", 2.0),)}, "x.alphas: 'layers.9.*' matches no layer"),
        ({"layers": (0, 4)}, "x.layers: there is no layer 4; the model has 0 to 3"),
        ({"ranks": (("q_proj", "x"),)}, "x.ranks: ('q_proj', 'x') is no (pattern, number); give (('q_proj', 4),)"),
        ({"ranks": ("q_proj", 2)}, "x.ranks: 'q_proj' is no (pattern, number)"),
        ({"targets": ("q_proj,v_proj",)}, "matches no layer; give a tuple of names; valid are"),
        ({"init": "olora"}, "x.init is 'olora'; give 'lora', 'pissa' or 'pissa_niter_16'"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(fields, message):
    with pytest.raises(UserError) as error:
        LoraSpec(**{"rank": 2, "alpha": 4.0, **fields}).check(4, "x")
    assert message in str(error.value) and "\n" not in str(error.value)
