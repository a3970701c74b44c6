"""One function over many parts, on Dask: threads of this process, or an existing cluster.

Results come back in the order of the tasks, and are the same bits either way, because a task depends on nothing but
itself. Tasks carry addresses, never open files. At any time only a bounded number of parts is in work: as many as there
are threads here; twice the cluster's threads there, so that no worker waits for the next task.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import dask
from dask.callbacks import Callback

from analyses.resources import Resources
from engine.errors import UsageError

__all__ = ["run_tasks"]

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_SECONDS = 10


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    resources: Resources,
    *,
    finished: Callable[[T, R], None] | None = None,
) -> list[R]:
    """Call ``function`` on every task.

    Parameters
    ----------
    function : callable
        Importable by name where a cluster runs it.
    tasks : sequence
        Picklable where a cluster runs them; results too.
    resources : Resources
    finished : callable, optional
        Called with a task and its result as soon as that is there, from the thread that called this function.

    Returns
    -------
    list
        One result per task, in order.

    Raises
    ------
    UsageError
        No scheduler answers at the address.
    Exception
        The first error of a task, as it was raised there.
    """
    scheduler, progress = resources.scheduler, resources.progress
    calls = [functools.partial(function, task) for task in tasks]
    done = 0

    def after(number: int, result: R) -> None:
        nonlocal done
        done += 1
        if finished is not None:
            finished(tasks[number], result)
        if progress is not None:
            progress(done, len(calls))

    if progress is not None:
        progress(0, len(calls))
    return _on_cluster(calls, scheduler, after) if scheduler else _on_threads(calls, resources.workers, after)


def _on_threads(calls: Sequence[Callable[[], R]], workers: int, after: Callable[[int, R], None]) -> list[R]:
    # The threaded scheduler starts a task only when a thread is free: the bound on what is in work.
    delayed = [dask.delayed(call, pure=False, traverse=False)() for call in calls]
    numbers = {item.key: number for number, item in enumerate(delayed)}

    def after_task(key: Any, result: Any, *_: object) -> None:
        if key in numbers:
            after(numbers[key], result)

    with Callback(posttask=after_task):
        return list(dask.compute(*delayed, scheduler="threads", num_workers=workers, optimize_graph=False))


def _on_cluster(calls: Sequence[Callable[[], R]], scheduler: str, after: Callable[[int, R], None]) -> list[R]:
    from distributed import Client, as_completed  # noqa: PLC0415  (a second of import that threads do without)

    results: dict[int, R] = {}
    waiting = iter(enumerate(calls))
    try:
        client = Client(scheduler, set_as_default=False, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {scheduler} ({error}): check --scheduler, or leave it out"
        ) from error
    with client:
        window = 2 * max(1, sum(client.nthreads().values()))
        running = {client.submit(call, pure=False): number for number, call in islice(waiting, window)}
        completed = as_completed(list(running), loop=client.loop)
        for future in completed:
            number = running.pop(future)
            results[number] = future.result()
            after(number, results[number])
            for following, call in islice(waiting, 1):
                submitted = client.submit(call, pure=False)
                running[submitted] = following
                completed.add(submitted)
    return [results[number] for number in range(len(calls))]
