"""What an analysis may use: threads, memory, a cluster, and someone to tell how far it is and what to know."""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Notify", "Progress", "Resources"]

Progress = Callable[[int, int], None]
"""Called with the number of finished tasks and of all tasks, from the thread that called the analysis."""

Notify = Callable[[str], None]
"""Called with a sentence that whoever reads the results should know."""


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
    progress, notify : callable or None
    fewer_workers : bool
        Whether fewer may be used where ``memory`` is too small for all of them.
    """

    workers: int = 1
    memory: int = 2 * 2**30
    scheduler: str | None = None
    progress: Progress | None = None
    notify: Notify | None = None
    fewer_workers: bool = False

    def tell(self, sentence: str | None) -> None:
        """Notify, where there is something to say and someone to hear it."""
        if sentence is not None and self.notify is not None:
            self.notify(sentence)
