import importlib.util
import subprocess
import sys

import pytest

from jaxlora.chips import parse_slice
from jaxlora.errors import UserError
from jaxlora.plan.topology import devices_of


def test_without_libtpu_the_remedy_is_told(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    with pytest.raises(UserError, match=r"pip install 'jaxlora\[tpu\]'"):
        devices_of(parse_slice("v5e:2x4"))


def test_a_plan_keeps_to_the_cpu():
    program = (
        "from jaxlora.plan.topology import leave_accelerators\n"
        "import sys; assert 'jax' not in sys.modules\n"
        "leave_accelerators(); import jax; print(jax.default_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "cpu\n"
