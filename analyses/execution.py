"""One function over many parts, on Dask: threads of this process, or an existing cluster.

Results come back in the order of the tasks, and are the same bits either way, because a task depends on nothing but
itself. Tasks carry addresses, never open files. At any time only a bounded number of parts is in work: as many as there
are threads here; twice the cluster's threads there, so that no worker waits for the next task.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import dask
from dask.callbacks import Callback

__all__ = ["Progress", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[int, int], None]
"""Called with the number of finished tasks and of all tasks, from the thread that called the analysis."""


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> list[R]:
    """Call ``function`` on every task.

    Parameters
    ----------
    function : callable
        Importable by name where a cluster runs it.
    tasks : sequence
        Picklable where a cluster runs them; results too.
    workers : int
        Threads of this process; not used with a cluster.
    scheduler : str, optional
        Address of a Dask scheduler, ``tcp://…``.
    progress : callable, optional

    Returns
    -------
    list
        One result per task, in order.

    Raises
    ------
    Exception
        The first error of a task, as it was raised there.
    """
    calls = [functools.partial(function, task) for task in tasks]
    finished = 0

    def count_one() -> None:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, len(calls))

    if progress is not None:
        progress(0, len(calls))
    return _on_cluster(calls, scheduler, count_one) if scheduler else _on_threads(calls, workers, count_one)


def _on_threads(calls: Sequence[Callable[[], R]], workers: int, count_one: Callable[[], None]) -> list[R]:
    # The threaded scheduler starts a task only when a thread is free: the bound on what is in work.
    delayed = [dask.delayed(call, pure=False, traverse=False)() for call in calls]
    names = {item.key for item in delayed}

    def after_task(key: Any, *_: object) -> None:
        if key in names:
            count_one()

    with Callback(posttask=after_task):
        return list(dask.compute(*delayed, scheduler="threads", num_workers=workers, optimize_graph=False))


def _on_cluster(calls: Sequence[Callable[[], R]], scheduler: str, count_one: Callable[[], None]) -> list[R]:
    from distributed import Client, as_completed  # noqa: PLC0415  (a second of import that threads do without)

    results: dict[int, R] = {}
    waiting: Iterator[tuple[int, Callable[[], R]]] = iter(enumerate(calls))
    with Client(scheduler, set_as_default=False) as client:
        window = 2 * max(1, sum(client.nthreads().values()))
        running: dict[Any, int] = {}
        for number, call in (next(waiting) for _ in range(min(window, len(calls)))):
            running[client.submit(call, pure=False)] = number
        completed = as_completed(list(running))
        for future in completed:
            results[running.pop(future)] = future.result()
            count_one()
            for number, call in [pair] if (pair := next(waiting, None)) else []:
                following = client.submit(call, pure=False)
                running[following] = number
                completed.add(following)
    return [results[number] for number in range(len(calls))]
