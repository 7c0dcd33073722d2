"""The notice that a machine is about to be taken away."""

import os
import signal

import pytest

from jaxlora.train.mesh import make_mesh
from jaxlora.train.termination import Terminated, Termination


@pytest.fixture
def harmless():
    """SIGTERM does nothing to this process, until the block of a `Termination`."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_first_signal_is_heard_and_the_next_is_not_held_up(harmless):
    with Termination(make_mesh(1, 1)) as termination:
        termination.check()
        assert not termination.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # what it was before
        assert termination.asked() and termination.noticed
        with pytest.raises(Terminated):
            termination.check()


def test_after_the_block_a_signal_does_what_it_did_before(harmless):
    with Termination(make_mesh(1, 1)) as termination:
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM)
    assert not termination.asked()
