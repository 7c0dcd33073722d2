"""The devices of a TPU slice that is not there, for the compiler alone."""

import importlib.util
import os

from jaxlora.chips import Slice
from jaxlora.errors import UserError

# libtpu looks for a TPU VM's metadata server and logs that there is none; what it is told here it does not look up.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is opened, so that plans may run side by side
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def leave_accelerators() -> None:
    """Keeps JAX, which must not be imported yet, on the CPU: a plan opens no accelerator, its own machine's neither."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices_of(slice_: Slice) -> list:
    """Returns the devices of a slice, to compile for.

    Raises:
      UserError: libtpu is not installed, or does not know the slice.
    """
    import jax
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--topology: compiling for a TPU needs libtpu, not a TPU: pip install 'jaxlora[tpu]'")
    # By default libtpu thinks of hosts of four chips, which a single chip is no multiple of.
    alone = {"chips_per_host_bounds": (1,) * 3} if slice_.chips == 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=slice_.name, **alone).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology: libtpu does not take {slice_.name}: {' '.join(str(error).split())}") from None
