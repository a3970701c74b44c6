"""Contestants in processes of their own, as the scripts they stand for are run.

Contestants of one process share what the C library keeps of freed memory. One that has just let go of gigabytes leaves
the next one pages that are there already, where a script that does nothing else has the kernel make and clear each of
them: of a file of activations that is most of the time it takes to load.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context

import torch

__all__ = ["own_processes"]


@contextmanager
def own_processes(
    contestants: Mapping[str, Callable[[], object]], threads: int
) -> Iterator[Mapping[str, Callable[[], None]]]:
    """Give each contestant a process that stays until the end; what it returns stays there and is dropped.

    Parameters
    ----------
    contestants
        By name; can be pickled.
    threads
        Of torch, in each process.
    """
    with ExitStack() as stack:
        started = {}
        for name, contestant in contestants.items():
            process = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,))
            stack.enter_context(process)
            started[name] = partial(_run_there, process, contestant)
        yield started


def _run_there(process: ProcessPoolExecutor, contestant: Callable[[], object]) -> None:
    process.submit(_run_and_drop, contestant).result()


def _run_and_drop(contestant: Callable[[], object]) -> None:
    contestant()
