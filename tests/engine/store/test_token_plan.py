"""Order of windows and division of memory, over all sizes and without a disk."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.store.token_plan import MOST_OPEN_PARTS, PartTokens, Window, mixed_order, plan_pass, stored_order

part_tokens = st.builds(PartTokens, st.integers(0, 200), st.integers(0, 20), st.integers(1, 50), st.integers(2, 8192))
several = st.lists(part_tokens, max_size=12)


def covered(windows: list[Window], parts: list[PartTokens]) -> bool:
    """Whether each token lies in exactly one window, and each part's last window says so."""
    counts = [np.zeros(part.tokens, int) for part in parts]
    for window in windows:
        counts[window.part][window.start : window.stop] += 1
        assert 0 < window.stop - window.start <= parts[window.part].step
        assert window.stop <= parts[window.part].tokens
    finals = {window.part: place for place, window in enumerate(windows)}
    assert all(window.last == (finals[window.part] == place) for place, window in enumerate(windows))
    return all((count == 1).all() for count in counts)


@given(several)
def test_stored_order_is_that_of_the_store(parts: list[PartTokens]) -> None:
    windows = list(stored_order(parts))
    assert covered(windows, parts)
    assert windows == sorted(windows)


@given(several, st.integers(1, 8), st.integers(0, 2**40))
def test_mixed_order_takes_each_window_once_from_few_open_parts(
    parts: list[PartTokens], open_parts: int, seed: int
) -> None:
    windows = list(mixed_order(parts, open_parts, np.random.default_rng(seed)))
    assert covered(windows, parts)
    assert windows == list(mixed_order(parts, open_parts, np.random.default_rng(seed)))
    opened: set[int] = set()
    for window in windows:
        opened.add(window.part)
        assert len(opened) <= open_parts
        if window.last:
            opened.remove(window.part)


def test_mixed_order_prefers_neither_parts_nor_windows() -> None:
    """With all parts open every window is as likely to come first as any other."""
    parts = [PartTokens(40, 1, 10, 2), PartTokens(10, 1, 10, 2), PartTokens(0, 0, 10, 2), PartTokens(30, 1, 10, 2)]
    firsts = [next(mixed_order(parts, 8, np.random.default_rng(seed)))[:2] for seed in range(4000)]
    counts = np.array([firsts.count(window[:2]) for window in stored_order(parts)])
    assert counts.sum() == 4000
    assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()


@given(several, st.integers(1, 5), st.integers(1, 300), st.booleans())
def test_what_a_refusal_says_is_needed_is_enough_and_no_more(
    parts: list[PartTokens], layers: int, batch: int, shuffled: bool
) -> None:
    ask = {"layers": layers, "batch": batch, "shuffled": shuffled}
    if not any(part.tokens for part in parts):
        assert plan_pass(parts, memory=0, **ask) == (0, 0)
        return
    with pytest.raises(UsageError, match="memory=1 is too small") as refused:
        plan_pass(parts, memory=1, **ask)
    found = re.search(r"need (\d+) bytes", str(refused.value))
    assert found is not None
    needed = int(found[1])
    with pytest.raises(UsageError):
        plan_pass(parts, memory=needed - 1, **ask)
    total, longest = sum(part.tokens for part in parts), max(min(part.step, part.tokens) for part in parts)
    for memory in (needed, 2 * needed, 100 * needed):
        plan = plan_pass(parts, memory=memory, **ask)
        assert min(batch + longest, total) <= plan.pool_rows <= total
        assert 1 <= plan.open_parts <= MOST_OPEN_PARTS
        state = max(part.state_bytes for part in parts if part.tokens)
        assert plan.pool_rows * layers * state < memory


def test_more_memory_holds_more_of_the_store_and_opens_more_parts() -> None:
    parts = [PartTokens(6000, 100, 500, 8192)] * 1000
    small, default = (plan_pass(parts, layers=1, batch=4096, memory=memory, shuffled=True) for memory in (2**28, 2**30))
    assert small.pool_rows < default.pool_rows
    assert default.open_parts == MOST_OPEN_PARTS
    assert default.pool_rows > 100_000  # of 131072 that would fit if nothing else were held
    assert plan_pass(parts, layers=1, batch=4096, memory=2**30, shuffled=False).pool_rows == 4096 + 500
