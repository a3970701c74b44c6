"""Reading ahead: order, bound, errors at their turn."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.capture.prefetch import prefetch


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5), st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(items: list[int], ahead: int, threads: int) -> None:
    assert list(prefetch(lambda item: item * 2, items, ahead=ahead, threads=threads)) == [item * 2 for item in items]


def test_order_holds_when_later_items_are_faster() -> None:
    def work(item: int) -> int:
        time.sleep(0.004 if item % 2 == 0 else 0.0)
        return item

    assert list(prefetch(work, range(12), ahead=4, threads=4)) == list(range(12))


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_the_bound_is_taken_early(ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(20):
            taken += 1
            yield item

    results = prefetch(lambda item: item, items(), ahead=ahead)
    assert taken == 0, "nothing is read before the first result is wanted"
    for used in range(1, 6):
        next(results)
        assert taken <= used + ahead
    results.close()
    assert taken <= 5 + ahead


def test_work_is_done_elsewhere() -> None:
    assert threading.get_ident() not in set(prefetch(lambda _: threading.get_ident(), range(5), ahead=2))


def test_an_error_is_raised_when_its_turn_comes() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    results = prefetch(work, range(10), ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(results)


def test_a_reader_that_stops_leaves_no_work_behind() -> None:
    done: list[int] = []
    results = prefetch(done.append, range(100), ahead=2)
    next(results)
    results.close()
    assert len(done) <= 4
    assert not any(thread.name.startswith("prepare") for thread in threading.enumerate())
