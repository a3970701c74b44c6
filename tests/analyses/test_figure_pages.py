"""Figures of many panels, cut into pages."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analyses.figure_pages import PAGE_INCHES, cut_pages, draw_pages

HEIGHTS = st.lists(st.floats(0.1, 12), max_size=20)


@given(HEIGHTS)
def test_pages_keep_the_order_and_none_has_room_for_the_first_panel_of_the_next(heights: list[float]) -> None:
    pages = cut_pages(range(len(heights)), heights, 9.0)
    assert [panel for page in pages for panel in page] == list(range(len(heights)))
    sums = [sum(heights[panel] for panel in page) for page in pages]
    assert all(total <= 9.0 + 1e-9 or len(page) == 1 for total, page in zip(sums, pages, strict=True))
    assert all(total + heights[following[0]] > 9.0 - 1e-9 for total, following in zip(sums, pages[1:], strict=False))


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_several_pages_say_which_they_are_and_have_room_for_it(count: int, sizes: list[int]) -> None:
    drawn: list[tuple[Sequence[int], str]] = []

    def draw(page: Sequence[int], notes: str) -> Figure:
        drawn.append((page, notes))
        return Figure()

    def beside(notes: str) -> float:
        return 0.1 * (notes.count("\n") + 1)

    figures = draw_pages(range(count), [2.2] * count, ["A note."], beside=beside, draw=draw)
    assert [len(page) for page, _ in drawn] == sizes
    assert len(figures) == len(sizes)
    for number, (page, notes) in enumerate(drawn, 1):
        which = f"\nPage {number} of {len(sizes)}." if len(sizes) > 1 else ""
        assert notes == f"A note.{which}"
        assert 2.2 * len(page) + beside(notes) <= PAGE_INCHES
