"""Reads and prepares the next images while the model is busy with the last."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetch"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int, threads: int = 2
) -> Generator[Result]:
    """Yield ``work(item)`` in order, computed up to ``ahead`` items early on background threads.

    What ``work`` raises is raised when its turn comes.
    """
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="prepare") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
