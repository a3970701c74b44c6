"""Writing off the critical path: one background thread takes finished parts from a bounded queue.

``depth`` parts may wait while one is written; ``put`` blocks beyond that, so host memory holds at most the filling
part, the waiting ones and the one being written. The first error of the writer is raised in the caller at the next
``put`` or at ``close``; parts written before it stay committed.
"""

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["BackgroundSink"]

Item = TypeVar("Item")


class BackgroundSink(Generic[Item]):
    """Runs ``write(item)`` for every item put, in order, on one thread.

    Parameters
    ----------
    write
        Called on the background thread.
    depth
        Items that may wait besides the one being written; 0 hands over only when the writer is idle.
    """

    def __init__(self, write: Callable[[Item], object], *, depth: int = 0) -> None:
        self._write = write
        self._free = threading.Semaphore(depth + 1)
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="part-writer", daemon=True)
        self._thread.start()
        self.seconds_waited = 0.0

    def put(self, item: Item) -> None:
        """Hand an item over; blocks while the queue is full and raises what the writer raised."""
        began = time.perf_counter()
        self._free.acquire()
        self.seconds_waited += time.perf_counter() - began
        if self._error is not None:
            self._free.release()
            raise self._error
        self._queue.put(item)

    def close(self) -> None:
        """Wait until everything put is written; raises what the writer raised."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            # What is queued is whole and paid for: commit it before the error goes on.
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._write(item)
            except BaseException as error:
                self._error = error
            finally:
                del item
                self._free.release()
