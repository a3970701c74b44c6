import math
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from distributed import LocalCluster

from analyses.contextualization import analyze_store
from analyses.execution import run_tasks
from analyses.resources import Resources
from engine.errors import StrataError, UsageError
from engine.store import open_store
from tests.engine.store.builders import TinyStore


def square(number: int) -> int:
    return number * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise StrataError("task 3 is refused")
    return number


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as running:
        yield running.scheduler_address


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_keep_the_order_and_tell_every_result(workers: int) -> None:
    seen: list[tuple[int, int]] = []
    told: dict[int, int] = {}
    resources = Resources(workers, progress=lambda *now: seen.append(now))
    assert run_tasks(square, range(20), resources) == [n * n for n in range(20)]
    assert seen == [(n, 20) for n in range(21)]
    assert run_tasks(square, range(20), resources, finished=told.__setitem__) == [None] * 20
    assert told == {n: n * n for n in range(20)}


def test_what_is_made_of_a_result_takes_its_place(cluster: str) -> None:
    for resources in (Resources(workers=2), Resources(scheduler=cluster)):
        made = run_tasks(math.isqrt, [4, 9, 16], resources, finished=lambda task, result: f"{task}: {result}")
        assert made == ["4: 2", "9: 3", "16: 4"]


def test_no_more_tasks_are_in_work_than_there_are_workers() -> None:
    lock, running, most = threading.Lock(), 0, 0
    gate = threading.Barrier(3)

    def enter(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(timeout=30)  # three at once, or the test fails
        with lock:
            running -= 1

    run_tasks(enter, range(12), Resources(workers=3))
    assert most == 3


def test_nothing_to_do_is_nothing() -> None:
    assert run_tasks(square, [], Resources()) == []


def test_an_error_of_a_task_is_raised_here() -> None:
    with pytest.raises(StrataError, match="task 3 is refused"):
        run_tasks(refuse_three, range(6), Resources(workers=2))


def test_a_cluster_gives_the_same_bits(cluster: str, written_store: Callable[..., TinyStore]) -> None:
    store = open_store(written_store(images=8, parts=8).path)
    seen: list[tuple[int, int]] = []
    here = analyze_store(store, source="hidden_states", self_pairs=True)
    there = analyze_store(
        store,
        source="hidden_states",
        self_pairs=True,
        resources=Resources(scheduler=cluster, progress=lambda *now: seen.append(now)),
    )
    np.testing.assert_array_equal(here.cosine, there.cosine)
    np.testing.assert_array_equal(here.normed, there.normed)
    assert seen == [(n, 8) for n in range(9)]


def test_a_cluster_passes_errors_on_and_more_tasks_than_its_window(cluster: str) -> None:
    # Workers are processes of their own, so these are functions that any Python can import.
    assert run_tasks(math.isqrt, [n * n for n in range(15)], Resources(scheduler=cluster)) == list(range(15))
    with pytest.raises(ValueError, match="nonnegative"):
        run_tasks(math.isqrt, [4, 9, -1], Resources(scheduler=cluster))


def test_a_wrong_address_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.execution._CONNECT_SECONDS", 0.2)
    with pytest.raises(UsageError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*check --scheduler"):
        run_tasks(square, [1], Resources(scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(UsageError, match="no Dask scheduler answers at nonsense"):
        run_tasks(square, [1], Resources(scheduler="nonsense://x"))
