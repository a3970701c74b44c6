"""Real processes for tests, forked off a server that has imported everything once: starting one takes no time."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

__all__ = ["fork_server", "wait_for"]


def fork_server(*modules: str) -> ForkServerContext:
    """A context whose processes find these modules imported, unless a server with others runs already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, "nothing happened for two minutes"
        time.sleep(0.02)
