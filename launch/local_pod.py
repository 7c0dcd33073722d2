"""Several hosts on this machine: the same command in several processes that train as one.

    python -m launch.local_pod --hosts 2 --devices 4 -- jaxlora train --config=configs/mine.py --workdir=runs/mine

Each process is a host of `jax.distributed` with CPU devices of its own, so that what a pod does (its collectives, its
checkpoints, its files) can be seen without one. It is no way to train faster: the hosts share this machine's cores.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

GRACE = 5.0  # seconds that the other hosts have to end by themselves when one has failed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command on every host; returns 0, or the status of the host that failed first.

    What the first host prints appears as it comes, what another prints only if that one is the first to fail. SIGTERM
    and Ctrl-C go to every host; when one fails, the others are ended.
    """
    parser = argparse.ArgumentParser(prog="python -m launch.local_pod", description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2, help="processes (2)")
    parser.add_argument("--devices", type=int, default=4, help="CPU devices of each (4)")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    given = parser.parse_args(argv)
    if given.hosts < 1 or given.devices < 1:
        parser.error("--hosts and --devices must be 1 or more")
    address = f"localhost:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        hosts, outputs = [], []
        try:
            for number in range(given.hosts):
                output = open(os.path.join(folder, str(number)), "w+b") if number else None  # noqa: SIM115
                environment = environment_of(number, given.hosts, given.devices, address)
                hosts.append(start(given.command, environment, output))
                outputs.append(output)
            forward_signals(hosts)
            failed = wait(hosts)
        finally:
            for host in hosts:
                host.kill()
                host.wait()
        if failed is None:
            return 0
        if failed:
            outputs[failed].seek(0)
            for line in outputs[failed].read().decode(errors="replace").splitlines():
                print(f"host {failed}: {line}", file=sys.stderr)
        status = hosts[failed].returncode
        return status if status > 0 else 128 - status


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def environment_of(number: int, hosts: int, devices: int, address: str) -> dict[str, str]:
    """Returns the environment in which a process is one of several hosts with CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(hosts),
        "JAX_PROCESS_ID": str(number),
    }


def start(command: Sequence[str], environment: dict[str, str], output: IO[bytes] | None) -> subprocess.Popen:
    """Starts a host; a session of its own keeps the terminal's Ctrl-C from reaching it twice."""
    try:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    except FileNotFoundError:
        sys.exit(f"local_pod: {command[0]}: no such command")


def forward_signals(hosts: Sequence[subprocess.Popen]) -> None:
    """Hands SIGTERM and SIGINT on to every host, from now on."""

    def forward(number, _):
        for host in hosts:
            host.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)


def wait(hosts: Sequence[subprocess.Popen]) -> int | None:
    """Waits until all hosts have ended, or one has failed and the others had `GRACE` seconds to follow.

    Returns:
      The number of the host that failed first, or None.
    """
    failed, deadline = None, float("inf")
    while True:
        statuses = [host.poll() for host in hosts]
        if failed is None and any(statuses):
            failed = next(number for number, status in enumerate(statuses) if status)
            deadline = time.monotonic() + GRACE
        if None not in statuses or time.monotonic() > deadline:
            return failed
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
