"""What an analysis may use: threads, memory, a cluster, and someone to tell how far it is."""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Progress", "Resources"]

Progress = Callable[[int, int], None]
"""Called with the number of finished tasks and of all tasks, from the thread that called the analysis."""


class Resources(NamedTuple):
    """What an analysis may use.

    Attributes
    ----------
    workers : int
        Threads of this process.
    memory : int
        Bytes, of this process; with a scheduler, of each of its worker threads too.
    scheduler : str or None
        Address of a Dask scheduler, ``tcp://…``; its threads are then used and not ours.
    progress : callable or None
    """

    workers: int = 1
    memory: int = 2 * 2**30
    scheduler: str | None = None
    progress: Progress | None = None
