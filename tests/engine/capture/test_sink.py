"""Writing on another thread: order, bound, errors, and nothing kept."""

import threading
import time
import weakref

import pytest

from engine.capture.sink import BackgroundSink


class Part:
    """Something that can be watched going away."""


def test_items_are_written_in_order_on_one_other_thread() -> None:
    written: list[tuple[int, int]] = []
    with BackgroundSink[int](lambda item: written.append((item, threading.get_ident())), 0) as sink:
        for item in range(20):
            sink.put(item, 1)
    assert [item for item, _ in written] == list(range(20))
    assert len({thread for _, thread in written}) == 1
    assert threading.get_ident() not in {thread for _, thread in written}


@pytest.mark.parametrize("limit", [0, 1, 10, 25])
def test_items_wait_or_are_written_within_a_bound_in_bytes(limit: int) -> None:
    finished: list[int] = []

    def write(item: int) -> None:
        time.sleep(0.005)  # slow enough that an unbounded queue would fill up
        finished.append(item)

    sizes = [3, 9, 1, 30, 4, 2, 2, 26, 5, 8, 1, 12]
    together = 0
    with BackgroundSink(write, limit) as sink:
        for item, size in enumerate(sizes):
            sink.put(item, size)
            held = sizes[len(finished) : item + 1]
            assert sum(held) <= limit or len(held) <= 1
            together = max(together, len(held))
    assert finished == list(range(12))
    assert sink.seconds_waited > 0
    assert together == 1 if limit < 3 else together > 1


def test_a_written_item_is_freed_before_the_next_is_taken() -> None:
    with BackgroundSink[Part](lambda item: None, 0) as sink:
        watched = []
        for _ in range(5):
            part = Part()
            watched.append(weakref.ref(part))
            sink.put(part, 1)
            del part
            assert all(reference() is None for reference in watched[:-1])


def test_an_error_of_the_writer_reaches_the_caller_and_nothing_is_written_after_it() -> None:
    written: list[int] = []

    def write(item: int) -> None:
        if item == 1:
            raise OSError("disk full")
        written.append(item)

    def fill() -> None:
        with BackgroundSink(write, 0) as sink:
            for item in range(10):
                sink.put(item, 1)

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert written == [0]


def test_an_error_on_the_last_item_is_raised_at_the_end() -> None:
    def write(item: int) -> None:
        raise OSError(f"item {item}")

    def fill() -> None:
        with BackgroundSink(write, 0) as sink:
            sink.put(0, 1)

    with pytest.raises(OSError, match="item 0"):
        fill()


def test_a_sink_that_failed_says_so_every_time() -> None:
    def write(item: int) -> None:
        raise OSError(f"item {item}")

    sink = BackgroundSink(write, 0)
    sink.put(0, 1)
    for _ in range(3):
        with pytest.raises(OSError, match="item 0"):
            sink.put(1, 1)
    with pytest.raises(OSError, match="item 0"):
        sink.close()


def test_what_was_put_before_an_error_of_the_caller_is_written() -> None:
    written: list[int] = []

    def write(item: int) -> None:
        time.sleep(0.005)
        written.append(item)

    def fill() -> None:
        with BackgroundSink(write, 2) as sink:
            for item in range(3):
                sink.put(item, 1)
            raise KeyError("the model failed")

    with pytest.raises(KeyError, match="the model failed"):
        fill()
    assert written == [0, 1, 2]


def test_the_callers_error_wins_over_the_writers() -> None:
    def write(item: int) -> None:
        raise OSError("disk full")

    def fill() -> None:
        with BackgroundSink(write, 0) as sink:
            sink.put(0, 1)
            raise KeyError("the model failed")

    with pytest.raises(KeyError, match="the model failed"):
        fill()


def test_the_thread_is_gone_at_the_end() -> None:
    with BackgroundSink[int](lambda item: None, 0) as sink:
        sink.put(1, 1)
    assert not any(thread.name == "part-writer" for thread in threading.enumerate())
