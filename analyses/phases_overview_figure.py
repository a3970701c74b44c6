"""Overview of the phases of many curves: one bar per store and prompt group, on one axis.

The curves themselves stand in the figures of contextualization. A store's name heads its bars; the layers at which its
phases meet stand to the right of each, because a bar may show depths.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analyses.figure_pages import draw_pages
from analyses.figure_style import (
    ADJUSTMENT_NOTES,
    COLUMN_INCHES,
    NOTE,
    LayerAxis,
    common_axis,
)
from analyses.labels import short_label, store_labels
from analyses.phases import CurvePhases
from analyses.phases_style import boundary_colours, shade

__all__ = ["draw_overview"]

_FOOTER = (
    "Phases of the mean image–text curve; hatched: not supported, that is, not found again on images left out. Dots "
    "and bars: boundaries and their 95 % intervals, grey next to a phase that is not supported."
)
_ROW, _BAR, _FRAME, _FOOT_LINE = 0.16, 0.72, 0.75, 0.11  # inches of a row, the bar's share of it, inches below
_LETTERS = 18


def draw_overview(curves: Sequence[CurvePhases], adjustment: str) -> list[Figure]:
    """Draw the phases of curves, store after store, on as many pages as it takes.

    Layers where all models have as many blocks, else depths. A store with more curves than a page has room for has a
    page that is higher.
    """
    labels = store_labels([curve.identity for curve in curves])
    axis = common_axis([(curve.layers, curve.block_count) for curve in curves])
    notes = [_FOOTER, *filter(None, [ADJUSTMENT_NOTES.get(adjustment)])]
    supported = [phase for curve in curves for phase in curve.detection.phases if phase.supported]
    tints = {phase.name: shade(phase) for phase in sorted(supported, key=lambda phase: phase.phase)}
    stores = [
        (short_label(labels[store]), list(own)) for store, own in groupby(curves, lambda curve: curve.identity.store)
    ]
    heights = [_ROW * (len(own) + 1) for _, own in stores]
    return draw_pages(
        stores,
        heights,
        notes,
        beside=lambda lines: _beside(lines, tints),
        draw=lambda page, lines: _draw_page(page, axis, tints, lines),
    )


def _beside(notes: str, tints: Mapping[str, Any]) -> float:
    return _FRAME + _FOOT_LINE * (notes.count("\n") + 1 + -(-len(tints) // 2))


def _draw_page(
    stores: Sequence[tuple[str, Sequence[CurvePhases]]], axis: LayerAxis, tints: Mapping[str, Any], notes: str
) -> Figure:
    rows = sum(len(own) + 1 for _, own in stores)
    figure = Figure(figsize=(COLUMN_INCHES, rows * _ROW + _beside(notes, tints)), layout="constrained")
    ax = figure.subplots()
    heads, ticks, row = [], {}, 0
    for name, own in stores:
        heads.append((row, name))
        for curve in own:
            row += 1
            ticks[row] = short_label(curve.group.title, _LETTERS)
            _draw_bar(ax, axis, curve, row)
        row += 1
    _name_rows(ax, axis, heads, ticks)
    handles = [Patch(**style) for style in tints.values()]
    if handles:
        figure.legend(handles, list(tints), loc="outside upper left", ncols=2, frameon=False, columnspacing=1.0)
    figure.supxlabel(notes, **NOTE)
    return figure


def _draw_bar(ax: Axes, axis: LayerAxis, curve: CurvePhases, row: int) -> None:
    phases, blocks = curve.detection.phases, curve.block_count

    def at(layer: int) -> float:
        return layer / blocks if axis.relative else layer

    for phase in phases:
        style = {"linewidth": 0, "zorder": 1, **shade(phase)}
        ax.barh(row, at(phase.end) - at(phase.start), left=at(phase.start), height=_BAR, **style)
    for phase, colour in list(zip(phases, boundary_colours(phases), strict=True))[:-1]:
        style = {"color": colour, "zorder": 2, "solid_capstyle": "butt"}
        ax.plot([at(phase.end_low), at(phase.end_high)], [row, row], linewidth=0.9, **style)
        ax.plot([at(phase.end)], [row], "o", markersize=2, **style)
    ends = ", ".join(str(phase.end) for phase in phases[:-1])
    _write(ax, ends, (1, row), (3, 0), va="center_baseline")


def _name_rows(ax: Axes, axis: LayerAxis, heads: Sequence[tuple[int, str]], ticks: dict[int, str]) -> None:
    for row, name in heads:
        _write(ax, name, (0, row), (2, 0), va="center_baseline", fontsize=6.5)
    _write(ax, "at layer", (1, heads[0][0]), (3, 0), va="center_baseline", color="0.35")
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(max(ticks) + 0.6, -0.6)
    axis.set_on(ax, labelled=True)


def _write(ax: Axes, text: str, at: tuple[float, float], points: tuple[float, float], **style: Any) -> None:
    """Write at a fraction of the axes' width and the height of a row, moved by points."""
    where: Any = ax.get_yaxis_transform()
    ax.annotate(text, at, points, xycoords=where, textcoords="offset points", **{"fontsize": 6, **style})
