"""Writing off the critical path: one background thread takes finished parts from a queue that is bounded in bytes.

``put`` blocks until the new part fits beside those that wait or are being written, or until there are none: host memory
holds the filling part and either ``limit`` bytes of others or a single larger one. The first error of the writer is
raised in the caller at the next ``put`` or at ``close``; parts written before it stay committed.
"""

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["QUEUE_BYTES", "BackgroundSink"]

QUEUE_BYTES = 2**28
"""Bytes of parts that wait or are written, where they are smaller than this: a short delay of the disk then stops
nothing. Parts of the usual size are larger, and one at a time is written."""

Item = TypeVar("Item")


class BackgroundSink(Generic[Item]):
    """Runs ``write(item)`` for every item put, in order, on one thread.

    Parameters
    ----------
    write
        Called on the background thread.
    limit
        Bytes of items that may wait or be written at once; 0 hands over only when the writer is idle.
    """

    def __init__(self, write: Callable[[Item], object], limit: int) -> None:
        self._write = write
        self._limit = limit
        self._held = 0
        self._items = 0
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[tuple[Item, int] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="part-writer", daemon=True)
        self._thread.start()
        self.seconds_waited = 0.0

    def put(self, item: Item, nbytes: int) -> None:
        """Hand an item of so many bytes over; blocks while it has no room, and raises what the writer raised."""
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: not self._items or self._held + nbytes <= self._limit)
            self.seconds_waited += time.perf_counter() - began
            if self._error is not None:
                raise self._error
            self._items += 1
            self._held += nbytes
        self._queue.put((item, nbytes))

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
        while (entry := self._queue.get()) is not None:
            item, nbytes = entry
            try:
                if self._error is None:
                    self._write(item)
            except BaseException as error:
                self._error = error
            finally:
                del entry, item
                with self._changed:
                    self._items -= 1
                    self._held -= nbytes
                    self._changed.notify()
