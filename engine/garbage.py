"""Keeping Python's garbage collector out of work that makes very many small objects and no cycles of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile; also a decorator, ``@uncollected()``.

    After so many new objects the collector looks through all that there are. Of 100,000 images or 2000 manifests that
    takes a third of the time, and more for each the more there are.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
