"""How many cores there are, and several small runs side by side on them, where one keeps one core busy."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(function: Callable, jobs: Mapping[Hashable, tuple]) -> Iterator[tuple[Any, Any]]:
    """Calls `function(*arguments)` for every job and yields (name, result) as each one ends.

    On a CPU of two cores or more, two processes share the jobs, each with half of the cores; an accelerator serves one
    process, so there the jobs run here, one after the other.

    Args:
      function: of a module, so that another process can import it.
      jobs: name to arguments.

    Raises:
      What a job raises; those not yet begun are left out.
    """
    import jax

    if jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity") or cores() < 2:
        for name, arguments in jobs.items():
            yield name, function(*arguments)
        return
    own, spawn = sorted(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    halves = spawn.SimpleQueue()
    for half in (own[::2], own[1::2]):
        halves.put(half)
    start = (jax.config.jax_compilation_cache_dir, halves)
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=_start, initargs=start) as pool:
        pending = {pool.submit(function, *arguments): name for name, arguments in jobs.items()}
        try:
            for done in as_completed(pending):
                yield pending[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure, the jobs not yet begun


def _start(cache: str, halves: multiprocessing.SimpleQueue) -> None:
    """Gives a process cores of its own, for two XLA programs on the same cores run at a fraction of their speed; keeps
    its bars and tables off the terminal that both share; and ends it where the process that it works for has ended."""
    import jax

    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.sched_setaffinity(0, halves.get())
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """Ends this process when its parent has been killed: it would train on, into folders that the next command uses,
    and then wait for work for ever."""
    parent.join()
    os._exit(1)
