"""What became of the adapters of trained runs."""

import numpy as np
import pytest

from jaxlora.reproduce.adapters import adapters_of


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """The run of the trained one's row as the published code ran it: with a downstream adapter that is not active."""
    folder = tmp_path_factory.mktemp("published") / "run"
    flags = trained.flags("trainable_downstream_as_published")
    assert trained.run("train", *flags, "--config.evaluations=1", f"--workdir={folder}") == 0
    return folder


def test_frozen_keeps_its_bits_and_trained_does_not(trained):
    clinical, downstream = adapters_of(str(trained.downstream), "a run")
    assert (clinical.name, downstream.name, clinical.run) == ("clinical", "downstream", "a run")
    assert not clinical.changed and downstream.changed
    assert (clinical.trained, downstream.trained) == (False, True)
    assert clinical.effect > 0 and downstream.effect > 0
    assert clinical.as_it_should and downstream.as_it_should


def test_as_published_downstream_is_inert_and_the_clinical_one_is_trained(trained, published):
    clinical, downstream = adapters_of(str(published), "a run")
    assert clinical.changed and clinical.effect > 0
    assert not downstream.changed and downstream.effect == 0 and not downstream.active
    assert clinical.as_it_should and downstream.as_it_should
    frozen, _ = adapters_of(str(trained.downstream), "another")
    assert clinical.start == frozen.end  # both began with the adapter of step 1


def test_what_a_frozen_adapter_started_from_is_what_step_1_left(trained, stored):
    """The bits in the checkpoint of step 2 against those in the checkpoint of step 1."""
    step_1, step_2 = (stored(folder)["model"] for folder in (trained.clinical, trained.downstream))
    shared = [name for name in step_2 if "clinical" in name]
    assert shared
    for name in shared:
        np.testing.assert_array_equal(step_2[name], step_1[name])
