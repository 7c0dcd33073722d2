"""What the user is told comes from the first host alone."""

import jax
import pytest

from jaxlora.terminal import tell, warn


@pytest.mark.parametrize("host", [0, 1])
def test_the_first_host_tells(monkeypatch, capsys, host):
    monkeypatch.setattr(jax, "process_index", lambda: host)
    tell("found")
    warn("gone wrong")
    assert capsys.readouterr() == (("found\n", "jaxlora: gone wrong\n") if host == 0 else ("", ""))
