"""Reading something of each of many parts, several at once where that is faster."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engine.store.part import Part

__all__ = ["read_each_part"]

_T = TypeVar("_T")


def read_each_part(function: Callable[[Part], _T], parts: Sequence[Part], *, here: int = 1) -> list[_T]:
    """Call a function that reads a part on every part, and return what it returns, in their order.

    Parameters
    ----------
    function, parts
        What is called, and on what.
    here
        Threads, where the files are on this machine: Python's own steps take most of the time of reading many small
        ones, and threads that hand Python to each other at every file need twice as long as one. More only help where
        a library decodes for a while. Files far away are waited for, in many threads.
    """
    threads = here if all(part.location.is_local for part in parts) else None
    if threads == 1:
        return list(map(function, parts))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, parts))
