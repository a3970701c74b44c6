"""Figures of many panels: as many pages as it takes, none longer than a page of a paper."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

from analyses.figure_style import STYLE, wrap_notes

__all__ = ["PAGE_INCHES", "cut_pages", "draw_pages"]

PAGE_INCHES = 9.0

_T = TypeVar("_T")


def draw_pages(
    panels: Sequence[_T],
    inches: Sequence[float],
    notes: Sequence[str],
    *,
    beside: Callable[[str], float],
    draw: Callable[[Sequence[_T], str], Figure],
) -> list[Figure]:
    """Draw panels, in order, on as many pages as they take.

    Parameters
    ----------
    panels : sequence
        What is not torn apart.
    inches : sequence of float
        Height of each; one that is higher than a page has a page of its own.
    notes : sequence of str
        Sentences under every page; where there are several, each says which one it is.
    beside : callable
        Inches of a page beside its panels, from its notes in lines.
    draw : callable
        Makes a page of some of the panels and of its notes in lines.

    Returns
    -------
    list of Figure
    """
    pages = cut_pages(panels, inches, PAGE_INCHES - beside(wrap_notes([*notes, _which(1, 2)])))
    with mpl.rc_context(STYLE):
        return [
            draw(page, wrap_notes([*notes, *([_which(number, len(pages))] if len(pages) > 1 else [])]))
            for number, page in enumerate(pages, 1)
        ]


def _which(number: int, count: int) -> str:
    return f"Page {number} of {count}."


def cut_pages(panels: Sequence[_T], inches: Sequence[float], room: float) -> list[list[_T]]:
    """Fill pages that have so many inches of room for panels."""
    pages: list[list[_T]] = []
    left = 0.0
    for panel, height in zip(panels, inches, strict=True):
        if not pages or height > left:
            pages.append([])
            left = room
        pages[-1].append(panel)
        left -= height
    return pages
