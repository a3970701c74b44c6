"""One function over many parts, on Dask: threads of this process, or an existing cluster.

Results come back in the order of the tasks, and are the same bits either way, because a task depends on nothing but
itself. Tasks carry addresses, never open files. At any time only a bounded number of parts is in work: as many as there
are threads here; twice the cluster's threads there, so that no worker waits for the next task.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar, overload

import dask
from dask.callbacks import Callback

from analyses.resources import Resources
from engine.errors import UsageError

__all__ = ["run_tasks"]

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K")

_CONNECT_SECONDS = 10


@overload
def run_tasks(function: Callable[[T], R], tasks: Sequence[T], resources: Resources) -> list[R]: ...


@overload
def run_tasks(
    function: Callable[[T], R], tasks: Sequence[T], resources: Resources, *, finished: Callable[[T, R], K]
) -> list[K]: ...


def run_tasks(
    function: Callable[[T], Any],
    tasks: Sequence[T],
    resources: Resources,
    *,
    finished: Callable[[T, Any], Any] | None = None,
) -> list[Any]:
    """Call ``function`` on every task.

    Parameters
    ----------
    function : callable
        Importable by name where a cluster runs it.
    tasks : sequence
        Picklable where a cluster runs them; results too.
    resources : Resources
    finished : callable, optional
        Called here, in any thread, with a task and its result as soon as that is there. What it returns takes the
        result's place, so that large results need not pile up.

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
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(tasks))

    if progress is not None:
        progress(0, len(tasks))
    then = finished or _keep
    if scheduler:
        return _on_cluster(function, tasks, scheduler, then, count)
    return _on_threads(lambda task: then(task, function(task)), tasks, resources.workers, count)


def _keep(_: Any, result: R) -> R:
    return result


def _on_threads(call: Callable[[T], K], tasks: Sequence[T], workers: int, count: Callable[[], None]) -> list[K]:
    # The threaded scheduler starts a task only when a thread is free: the bound on what is in work.
    delayed = [dask.delayed(functools.partial(call, task), pure=False, traverse=False)() for task in tasks]
    keys = {item.key for item in delayed}

    def after_task(key: Any, *_: object) -> None:
        if key in keys:
            count()

    with Callback(posttask=after_task):
        return list(dask.compute(*delayed, scheduler="threads", num_workers=workers, optimize_graph=False))


def _on_cluster(
    function: Callable[[T], R],
    tasks: Sequence[T],
    scheduler: str,
    finished: Callable[[T, R], K],
    count: Callable[[], None],
) -> list[K]:
    from distributed import Client, as_completed  # noqa: PLC0415  (a second of import that threads do without)

    results: dict[int, K] = {}
    calls = [functools.partial(function, task) for task in tasks]
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
            results[number] = finished(tasks[number], future.result())
            count()
            for following, call in islice(waiting, 1):
                submitted = client.submit(call, pure=False)
                running[submitted] = following
                completed.add(submitted)
    return [results[number] for number in range(len(tasks))]
