"""How heat maps of shares look: logarithmic colours, because few keys take most; grey where there is nothing.

Maps that have colours of their own are drawn strip by strip, each with its bar.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyses.figure_pages import draw_pages
from analyses.figure_style import COLUMN_INCHES, NOTE

__all__ = ["draw_strip_bar", "draw_strips", "heat_colours", "label_heat", "positive", "strip_axes"]

_DECADES = 4
_BAR, _BAR_PLACE = 0.06, 0.72  # inches of a strip's bar, and with its longest labels
_T = TypeVar("_T")


def positive(values: NDArray[np.floating]) -> np.ma.MaskedArray:
    """Mask what a logarithm cannot show, so that it is drawn grey."""
    return np.ma.masked_where(~(values > 0), values)


def heat_colours(values: Sequence[NDArray[np.floating]]) -> dict[str, Any]:
    """One scale for all: up to the largest value, down over some decades where values reach so far."""
    present = np.concatenate([own[own > 0].ravel() for own in values])
    highest = float(present.max(initial=1e-9))
    lowest = max(float(present.min(initial=highest)), highest * 10.0**-_DECADES)
    scale = mpl.colormaps["viridis"].with_extremes(bad="0.88")
    return {"cmap": scale, "norm": LogNorm(min(lowest, highest / 2), highest), "rasterized": True}


def label_heat(bar: Colorbar, count: int) -> None:
    """Label the ends and what lies between; a scale of less than two decades has no powers of ten to label."""
    low, high = bar.norm.vmin, bar.norm.vmax
    assert low is not None
    assert high is not None
    ticks = np.geomspace(low, high, count).tolist()
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()


def strip_axes(part: Any, count: int) -> tuple[list[Axes], Axes]:
    """Make the panels of a strip and, right of them, the place of its bar, which is as wide on every strip."""
    ratios = [(COLUMN_INCHES - _BAR_PLACE) / count] * count + [_BAR_PLACE]
    *axes, place = part.subplots(1, count + 1, squeeze=False, width_ratios=ratios).ravel()
    place.set_axis_off()
    return axes, place


def draw_strip_bar(place: Axes, image: ScalarMappable) -> None:
    """Draw the bar of a strip in its place, where its labels have room whatever they say."""
    bar = place.figure.colorbar(image, cax=place.inset_axes((0, 0, _BAR / _BAR_PLACE, 1)))
    label_heat(bar, 3)
    place.text(1, 0.5, "share", transform=place.transAxes, rotation=90, ha="right", va="center")


def draw_strips(
    strips: Sequence[_T], inches: float, notes: Sequence[str], draw: Callable[[Any, _T], None]
) -> list[Figure]:
    """Draw strips below each other, on as many pages as they take.

    Parameters
    ----------
    strips : sequence
    inches : float
        Height of each.
    notes : sequence of str
        As of `figure_pages.draw_pages`.
    draw : callable
        Draws a strip on a subfigure.
    """

    def beside(lines: str) -> float:
        return 0.2 + 0.1 * lines.count("\n")

    def draw_page(page: Sequence[_T], lines: str) -> Figure:
        figure = Figure(figsize=(COLUMN_INCHES, inches * len(page) + beside(lines)), layout="constrained")
        for part, strip in zip(figure.subfigures(len(page), 1, squeeze=False).ravel(), page, strict=True):
            draw(part, strip)
        figure.supxlabel(lines, **NOTE)
        return figure

    return draw_pages(strips, [inches] * len(strips), notes, beside=beside, draw=draw_page)
