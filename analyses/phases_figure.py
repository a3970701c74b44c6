"""Figure of phases: the inter-modal curve with its phases shaded, numbered above and named below.

A phase may be one layer wide, so no name stands inside it: a short numeral stands above, and a key under the panel
gives the name, the layers and the change, or says that the phase is not supported. Every curve has best boundaries, a
monotone one too: a boundary stands in full strength only between two supported phases, and where the asked pattern is
not supported as a whole a line says what held-out images prefer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses.figure_style import COLUMN_INCHES, NOTE, PAIR_COLOURS, STYLE, layer_axis
from analyses.phase_detection import Detection, Phase
from analyses.phases import HEADLINE, CurvePhases

__all__ = ["draw_phases"]

_TINTS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442")
_TINT_OF = {"I": 0, "I+II": 0, "II": 1, "III": 2, "IV": 3}  # the same phase, the same colour in every pattern
_UNSUPPORTED: Any = {"facecolor": "0.95", "hatch": "/////"}
_STRONG, _FAINT = "0.15", "0.6"
_FOOTER = (
    "Line and band: mean and standard deviation over images.\n"
    "Dots and bars: boundaries and their 95 % intervals,\n"
    "grey next to a phase that is not supported (hatched),\n"
    "that is, not found again on images left out.\n"
    "Right column: change of the mean within a phase."
)
_POINT = 1 / 72  # inches
_LEFT, _WIDTH, _NOTE = 0.52, 2.88, 46 * _POINT
_ALONE, _AMONG_OTHERS = 1.35, 0.95  # inches of a panel's axes
_TICKS, _LABEL, _LINE, _GAP, _TITLE = 14, 11, 8, 5, 12  # points
_ROW_BARS, _ROW_NUMERALS = 3.0, 8.0  # points


class _Panel(NamedTuple):
    """One curve with the room that it takes: inches of its axes, rows of marks above, whether the axis is named."""

    curve: CurvePhases
    axes_inches: float
    bar_rows: list[int]
    numeral_rows: list[int]
    labelled: bool

    @property
    def bars(self) -> float:
        return 3 + _ROW_BARS * (max(self.bar_rows) + 1)

    @property
    def head(self) -> float:
        return self.bars + _ROW_NUMERALS * (max(self.numeral_rows) + 1)

    @property
    def under(self) -> float:
        return _TICKS + _LABEL * self.labelled

    @property
    def hint(self) -> str:
        return _hint(self.curve.detection)

    @property
    def inches(self) -> float:
        lines = len(self.curve.detection.phases) + bool(self.hint)
        return self.axes_inches + (self.head + _TITLE + self.under + _LINE * lines + _GAP) * _POINT


def draw_phases(found: Sequence[CurvePhases]) -> Figure:
    """Draw one panel per store and prompt kind, for the inter-modal curve; the last of equal layer axes is named."""
    curves = [curve for curve in found if curve.pair == HEADLINE]
    spans = [(int(curve.layers[0]), int(curve.layers[-1])) for curve in curves]
    drawn = [
        _plan_panel(curve, _ALONE if len(curves) == 1 else _AMONG_OTHERS, spans[k + 1 : k + 2] != [spans[k]])
        for k, curve in enumerate(curves)
    ]
    several = len({panel.curve.identity.store for panel in drawn}) > 1
    total = sum(panel.inches for panel in drawn) + _NOTE
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, total))
        top = total
        for panel in drawn:
            bottom = top - (panel.head + _TITLE) * _POINT - panel.axes_inches
            box = (_LEFT / COLUMN_INCHES, bottom / total, _WIDTH / COLUMN_INCHES, panel.axes_inches / total)
            ax = figure.add_axes(box)
            kind, store = panel.curve.prompt_kind, panel.curve.identity.store
            title = f"{store} · {kind}" if several else kind
            _write(ax, f"{title} ({_counts(panel.curve)})", (0, 1), (0, panel.head + 2), fontsize=7)
            _draw_curve(ax, panel)
            _draw_key(figure, ax, panel)
            top -= panel.inches
        figure.text(_LEFT / COLUMN_INCHES, 4 * _POINT / total, _FOOTER, va="bottom", **NOTE)
    return figure


def _counts(curve: CurvePhases) -> str:
    """How many images, and how many prompts of the kind each curve of an image is averaged over."""
    prompts = 1 if curve.samples is None else curve.samples.samples["prompt_id"].nunique()
    return f"{prompts} prompts, {curve.band.images} images" if prompts > 1 else f"{curve.band.images} images"


def _plan_panel(curve: CurvePhases, axes_inches: float, labelled: bool) -> _Panel:
    phases = curve.detection.phases
    layers_per_inch = (curve.layers[-1] - curve.layers[0]) * 1.04 / _WIDTH
    bars = [(phase.end_low - 0.06 * layers_per_inch, phase.end_high + 0.06 * layers_per_inch) for phase in phases]
    middles = [
        ((phase.start + phase.end) / 2, (0.03 * len(_numeral(phase)) + 0.02) * layers_per_inch) for phase in phases
    ]
    numerals = _first_fit([(middle - half, middle + half) for middle, half in middles])
    return _Panel(curve, axes_inches, _first_fit(bars), numerals, labelled)


def _hint(detection: Detection) -> str:
    """Say what held-out images prefer, where a pattern that was asked for is not supported as a whole."""
    shape, preferred = detection.shape, detection.preferred
    if shape is preferred or all(phase.supported for phase in detection.phases):
        return ""
    if (shape.segments, shape.first_rises) == (preferred.segments, preferred.first_rises):
        return f"Held-out images prefer {shape.segments} segments too, yet not all are supported"
    direction = "rise" if preferred.first_rises else "decline"
    segments = (
        f"1 segment ({direction})" if preferred.segments == 1 else f"{preferred.segments} segments ({direction} first)"
    )
    return f"Held-out images prefer {segments}, see --pattern auto"


def _firm_ends(phases: Sequence[Phase]) -> list[bool]:
    """Whether each phase's end is a boundary between supported phases; the last one ends with the model."""
    after = [*(phase.supported for phase in phases[1:]), True]
    return [phase.supported and following for phase, following in zip(phases, after, strict=True)]


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


def _numeral(phase: Phase) -> str:
    first = phase.name.split(" ")[0]
    return first if set(first) <= set("IV+") else str(phase.phase)


def _shade(phase: Phase) -> Any:
    tint = _TINTS[_TINT_OF.get(_numeral(phase), phase.phase - 1)]
    return {"facecolor": tint, "alpha": 0.35} if phase.supported else _UNSUPPORTED


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
        ax.axvspan(phase.start, phase.end, linewidth=0, zorder=0, **_shade(phase))
    for phase, firm in zip(phases, _firm_ends(phases), strict=True):
        ax.axvline(phase.end, color="0.5" if firm else "0.85", linewidth=0.5, zorder=1)
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
    rows = zip(phases, _firm_ends(phases), panel.bar_rows, strict=True)
    for phase, firm, row in list(rows)[:-1]:  # the last phase ends with the model, not at a boundary
        y = 1 + (3 + _ROW_BARS * row) / height
        style: Any = {"transform": across, "color": _STRONG if firm else _FAINT, "clip_on": False}
        ax.plot([phase.end_low, phase.end_high], [y, y], linewidth=0.9, solid_capstyle="butt", **style)
        ax.plot([phase.end], [y], "o", markersize=2, **style)
    for phase, row in zip(phases, panel.numeral_rows, strict=True):
        middle = ((phase.start + phase.end) / 2 - left) / (right - left)
        rise = panel.bars + _ROW_NUMERALS * row
        colour = _STRONG if phase.supported else _FAINT
        _write(ax, _numeral(phase), (middle, 1), (0, rise), ha="center", va="bottom", fontsize=6.5, color=colour)


def _draw_key(figure: Figure, ax: Axes, panel: _Panel) -> None:
    """List the phases under the panel, and what held-out images prefer."""
    width, height = figure.get_size_inches() / _POINT
    corner = ax.get_position()
    phases = panel.curve.detection.phases
    below = -panel.under - _LINE / 2
    for phase in phases:
        where = (corner.x0, corner.y0 + (below - 2.5) / height)
        figure.add_artist(Rectangle(where, 6 / width, 5 / height, transform=figure.transFigure, **_shade(phase)))
        style: Any = {"fontsize": 6, "va": "center_baseline", "color": "black" if phase.supported else "0.45"}
        name = phase.name if _numeral(phase) != str(phase.phase) else f"{phase.phase} {phase.name}"
        interval = f" (end {phase.end_low}–{phase.end_high})" if phase.end_high > phase.end_low else ""
        _write(ax, f"{name}, {phase.start}–{phase.end}{interval}", (0, 0), (9, below), **style)
        change = f"{phase.change:+.3f}".replace("-", "−") if phase.supported else "not supported"
        _write(ax, change, (1, 0), (0, below), ha="right", **style)
        below -= _LINE
    if panel.hint:
        _write(ax, panel.hint, (0, 0), (0, below), fontsize=6, va="center_baseline")
