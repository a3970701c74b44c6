"""Figure of phases: the inter-modal curve with its phases shaded, numbered above and named below.

A phase may be one layer wide, so no name stands inside it: a short numeral stands above, and a key under the panel
gives the name, the layers and the change, or says that the phase is not supported. Every curve has best boundaries, a
monotone one too: a boundary stands in full strength only between two supported phases, and where the asked pattern is
not supported as a whole a line says what held-out images prefer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses.figure_pages import draw_pages
from analyses.figure_style import (
    ADJUSTMENT_NOTES,
    COLUMN_INCHES,
    NOTE,
    PAIR_COLOURS,
    layer_axis,
)
from analyses.labels import short_label, store_labels
from analyses.phase_detection import Detection
from analyses.phases import HEADLINE, QUANTILES, CurvePhases
from analyses.phases_overview_figure import draw_overview
from analyses.phases_style import FAINT, STRONG, boundary_colours, full_name, numeral, shade

__all__ = ["draw_phases"]

_FOOTER = (
    "Line and band: mean and standard deviation over images.",
    "Dots and bars: boundaries and their 95 % intervals,",
    "grey next to a phase that is not supported (hatched),",
    "that is, not found again on images left out.",
    "Wide pale bars: middle half of the images' own boundaries.",
    "Right column: change of the mean within a phase.",
)
_MOST_PANELS = 4
_POINT = 1 / 72  # inches
_LEFT, _WIDTH = 0.48, 2.74
_ALONE, _AMONG_OTHERS = 1.35, 0.6  # inches of a panel's axes
_TICKS, _LABEL, _LINE, _GAP, _TITLE, _NOTE = 14, 11, 7.5, 3, 9, 8  # points, the last two of a line
_ROW_BARS, _ROW_NUMERALS = 3.0, 8.0  # points


class _Panel(NamedTuple):
    """One curve with the room that it takes: title, inches of its axes, rows of marks above, whether it is named."""

    curve: CurvePhases
    title: str
    axes_inches: float
    bar_rows: list[int]
    numeral_rows: list[int]
    labelled: bool = True

    @property
    def bars(self) -> float:
        return 3 + _ROW_BARS * (max(self.bar_rows) + 1)

    @property
    def head(self) -> float:
        return self.bars + _ROW_NUMERALS * (max(self.numeral_rows) + 1)

    @property
    def above(self) -> float:
        return self.head + 2 + _TITLE * (self.title.count("\n") + 1)

    @property
    def under(self) -> float:
        return _TICKS + _LABEL * self.labelled

    @property
    def hint(self) -> str:
        return _hint(self.curve.detection)

    @property
    def inches(self) -> float:
        lines = len(self.curve.detection.phases) + bool(self.hint)
        return self.axes_inches + (self.above + self.under + _LINE * lines + _GAP) * _POINT


def draw_phases(found: Sequence[CurvePhases], adjustment: str = "none") -> list[Figure]:
    """Draw the phases of inter-modal curves, on as many pages as it takes.

    Up to four curves have a panel each, the last of equal layer axes is named; more share the overview.
    """
    curves = [curve for curve in found if curve.pair == HEADLINE]
    if len(curves) > _MOST_PANELS:
        return draw_overview(curves, adjustment)
    labels = store_labels([curve.identity for curve in curves])
    panels = []
    for curve in curves:
        store = f"{short_label(labels[curve.identity.store])}\n" if len(labels) > 1 else ""
        title = f"{store}{short_label(curve.group.title)} ({_counts(curve)})"
        panels.append(_plan_panel(curve, title, _ALONE if len(curves) == 1 else _AMONG_OTHERS))
    notes = [*_FOOTER, *filter(None, [ADJUSTMENT_NOTES.get(adjustment)])]
    return draw_pages(panels, [panel.inches for panel in panels], notes, beside=_beside, draw=_draw_page)


def _beside(notes: str) -> float:
    return (6 + _NOTE * (notes.count("\n") + 1)) * _POINT


def _draw_page(panels: Sequence[_Panel], notes: str) -> Figure:
    spans = [(int(panel.curve.layers[0]), int(panel.curve.layers[-1])) for panel in panels]
    drawn = [panel._replace(labelled=spans[k + 1 : k + 2] != [spans[k]]) for k, panel in enumerate(panels)]
    total = sum(panel.inches for panel in drawn) + _beside(notes)
    figure = Figure(figsize=(COLUMN_INCHES, total))
    top = total
    for panel in drawn:
        bottom = top - panel.above * _POINT - panel.axes_inches
        box = (_LEFT / COLUMN_INCHES, bottom / total, _WIDTH / COLUMN_INCHES, panel.axes_inches / total)
        ax = figure.add_axes(box)
        _write(ax, panel.title, (0, 1), (0, panel.head + 2), fontsize=6.5, va="bottom")
        _draw_curve(ax, panel)
        _draw_key(figure, ax, panel)
        top -= panel.inches
    figure.text(_LEFT / COLUMN_INCHES, 4 * _POINT / total, notes, va="bottom", **NOTE)
    return figure


def _counts(curve: CurvePhases) -> str:
    """How many images, and how many prompts of the kind each curve of an image is averaged over."""
    prompts = 1 if curve.samples is None else curve.samples.samples["prompt_id"].nunique()
    return f"{prompts} prompts, {curve.band.images} images" if prompts > 1 else f"{curve.band.images} images"


def _plan_panel(curve: CurvePhases, title: str, axes_inches: float) -> _Panel:
    phases = curve.detection.phases
    layers_per_inch = (curve.layers[-1] - curve.layers[0]) * 1.04 / _WIDTH
    margin = 0.06 * layers_per_inch
    bars = [
        (min(phase.end_low, low) - margin, max(phase.end_high, high) + margin)
        for phase, (low, high) in zip(phases, _middle_half(curve), strict=True)
    ]
    middles = [
        ((phase.start + phase.end) / 2, (0.03 * len(numeral(phase)) + 0.02) * layers_per_inch) for phase in phases
    ]
    numerals = _first_fit([(middle - half, middle + half) for middle, half in middles])
    return _Panel(curve, title, axes_inches, _first_fit(bars), numerals)


def _middle_half(curve: CurvePhases) -> list[list[int]]:
    """First and third quartile, per phase, of where images' own curves end it."""
    quartiles: list[list[int]] = curve.ends[:, [QUANTILES.index(0.25), QUANTILES.index(0.75)]].tolist()
    return quartiles


def _hint(detection: Detection) -> str:
    """Say what held-out images prefer, where a pattern that was asked for is not supported as a whole."""
    shape, preferred = detection.shape, detection.preferred
    if shape is preferred or all(phase.supported for phase in detection.phases):
        return ""
    if (shape.segments, shape.first_rises) == (preferred.segments, preferred.first_rises):
        return f"Held-out images prefer {shape.segments} segments too, yet not all are supported"
    direction = "rise" if preferred.first_rises else "decline"
    if preferred.segments == 1:
        wanted = f"1 segment ({direction})"
    else:  # the line has no room for both
        wanted = f"a {direction} first" if preferred.segments == shape.segments else f"{preferred.segments} segments"
    return f"Held-out images prefer {wanted}: try --pattern auto"


def _first_fit(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Lowest row for each span in which it touches none placed before it."""
    rows: list[int] = []
    for low, high in spans:
        taken = {
            row
            for row, (other_low, other_high) in zip(rows, spans, strict=False)
            if low < other_high and other_low < high
        }
        rows.append(next(row for row in range(len(spans)) if row not in taken))
    return rows


def _write(ax: Axes, text: str, at: tuple[float, float], points: tuple[float, float], **style: Any) -> None:
    """Write at a place in the axes' own fractions, moved by points."""
    ax.annotate(text, at, points, xycoords="axes fraction", textcoords="offset points", **style)


def _draw_curve(ax: Axes, panel: _Panel) -> None:
    curve, phases = panel.curve, panel.curve.detection.phases
    band, layers = curve.band, curve.layers
    layer_axis(ax, int(layers[0]), int(layers[-1]))
    if not panel.labelled:
        ax.set_xlabel("")
    for phase in phases:
        ax.axvspan(phase.start, phase.end, linewidth=0, zorder=0, **shade(phase))
    for phase, colour in zip(phases, boundary_colours(phases), strict=True):
        ax.axvline(phase.end, color="0.5" if colour == STRONG else "0.85", linewidth=0.5, zorder=1)
    if band.images > 1:
        low, high = band.mean - band.std, band.mean + band.std
        ax.fill_between(layers, low, high, color=PAIR_COLOURS[HEADLINE], alpha=0.25, linewidth=0)
    ax.plot(layers, band.mean, color=PAIR_COLOURS[HEADLINE])
    ax.set_ylabel("image–text cosine")
    _draw_marks(ax, panel)


def _draw_marks(ax: Axes, panel: _Panel) -> None:
    """Draw boundary intervals just above the panel and numerals above those."""
    across: Any = ax.get_xaxis_transform()
    height = panel.axes_inches / _POINT
    left, right = ax.get_xlim()
    phases = panel.curve.detection.phases
    rows = zip(phases, boundary_colours(phases), panel.bar_rows, _middle_half(panel.curve), strict=True)
    for phase, colour, row, of_images in list(rows)[:-1]:  # the last phase ends with the model, not at a boundary
        y = 1 + (3 + _ROW_BARS * row) / height
        style: Any = {"transform": across, "color": colour, "clip_on": False, "solid_capstyle": "butt"}
        ax.plot(of_images, [y, y], linewidth=2.2, alpha=0.3, **style)
        ax.plot([phase.end_low, phase.end_high], [y, y], linewidth=0.9, **style)
        ax.plot([phase.end], [y], "o", markersize=2, **style)
    for phase, row in zip(phases, panel.numeral_rows, strict=True):
        middle = ((phase.start + phase.end) / 2 - left) / (right - left)
        rise = panel.bars + _ROW_NUMERALS * row
        colour = STRONG if phase.supported else FAINT
        _write(ax, numeral(phase), (middle, 1), (0, rise), ha="center", va="bottom", fontsize=6.5, color=colour)


def _draw_key(figure: Figure, ax: Axes, panel: _Panel) -> None:
    """List the phases under the panel, and what held-out images prefer."""
    width, height = figure.get_size_inches() / _POINT
    corner = ax.get_position()
    phases = panel.curve.detection.phases
    below = -panel.under - _LINE / 2
    for phase in phases:
        where = (corner.x0, corner.y0 + (below - 2.5) / height)
        figure.add_artist(Rectangle(where, 6 / width, 5 / height, transform=figure.transFigure, **shade(phase)))
        style: Any = {"fontsize": 6, "va": "center_baseline", "color": "black" if phase.supported else "0.45"}
        interval = f" (end {phase.end_low}–{phase.end_high})" if phase.end_high > phase.end_low else ""
        _write(ax, f"{full_name(phase)}, {phase.start}–{phase.end}{interval}", (0, 0), (9, below), **style)
        change = f"{phase.change:+.3f}".replace("-", "−") if phase.supported else "not supported"
        _write(ax, change, (1, 0), (0, below), ha="right", **style)
        below -= _LINE
    if panel.hint:
        _write(ax, panel.hint, (0, 0), (0, below), fontsize=6, va="center_baseline")
