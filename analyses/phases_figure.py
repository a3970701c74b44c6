"""Figure of phases: the inter-modal curve with its phases shaded, numbered above and named below.

A phase may be one layer wide, so no name stands inside it: a short numeral stands above, and a key under the panel
gives the name, the layers and the change, or says that the phase is not supported.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses.figure_style import COLUMN_INCHES, NOTE, PAIR_COLOURS, STYLE, layer_axis
from analyses.phase_detection import Phase
from analyses.phases import HEADLINE, CurvePhases

__all__ = ["draw_phases"]

_TINTS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442")
_TINT_OF = {"I": 0, "I+II": 0, "II": 1, "III": 2, "IV": 3}  # the same phase, the same colour in every pattern
_UNSUPPORTED: Any = {"facecolor": "0.95", "hatch": "/////"}
_FOOTER = (
    "Line and band: mean and standard deviation over images.\n"
    "Dots and bars on top: boundaries and their 95 % intervals.\n"
    "Right column: change of the mean. Hatched: not supported."
)
_POINT = 1 / 72  # inches
_LEFT, _WIDTH, _PANEL, _UNDER, _LINE, _NOTE = 0.52, 2.88, 1.35, 30 * _POINT, 9 * _POINT, 30 * _POINT
_ROW_BARS, _ROW_NUMERALS = 3.0, 8.0  # points


class _Panel(NamedTuple):
    """One curve with the rows that its marks above the panel take."""

    curve: CurvePhases
    bar_rows: list[int]
    numeral_rows: list[int]

    @property
    def bars(self) -> float:
        return 3 + _ROW_BARS * (max(self.bar_rows) + 1)

    @property
    def head(self) -> float:
        return self.bars + _ROW_NUMERALS * (max(self.numeral_rows) + 1) + 2

    @property
    def inches(self) -> float:
        return (self.head + 14) * _POINT + _PANEL + _UNDER + _LINE * len(self.curve.detection.phases) + 4 * _POINT


def draw_phases(found: Sequence[CurvePhases]) -> Figure:
    """Draw one panel per store and prompt kind, for the inter-modal curve."""
    drawn = [_plan_panel(curve) for curve in found if curve.pair == HEADLINE]
    several = len({panel.curve.identity.store for panel in drawn}) > 1
    total = sum(panel.inches for panel in drawn) + _NOTE
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, total))
        top = total
        for panel in drawn:
            bottom = top - (panel.head + 14) * _POINT - _PANEL
            box = (_LEFT / COLUMN_INCHES, bottom / total, _WIDTH / COLUMN_INCHES, _PANEL / total)
            ax = figure.add_axes(box)
            kind, store = panel.curve.prompt_kind, panel.curve.identity.store
            title = f"{store} · {kind}" if several else kind
            _write(ax, f"{title} ({panel.curve.band.images} images)", (0, 1), (0, panel.head + 3), fontsize=7)
            _draw_curve(ax, panel)
            _draw_key(figure, ax, panel.curve.detection.phases)
            top -= panel.inches
        figure.text(_LEFT / COLUMN_INCHES, 4 * _POINT / total, _FOOTER, va="bottom", **NOTE)
    return figure


def _plan_panel(curve: CurvePhases) -> _Panel:
    phases = curve.detection.phases
    layers_per_inch = (curve.layers[-1] - curve.layers[0]) * 1.04 / _WIDTH
    bars = [(phase.end_low - 0.06 * layers_per_inch, phase.end_high + 0.06 * layers_per_inch) for phase in phases]
    middles = [
        ((phase.start + phase.end) / 2, (0.03 * len(_numeral(phase)) + 0.02) * layers_per_inch) for phase in phases
    ]
    return _Panel(curve, _first_fit(bars), _first_fit([(middle - half, middle + half) for middle, half in middles]))


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
    for phase in phases:
        ax.axvspan(phase.start, phase.end, linewidth=0, zorder=0, **_shade(phase))
    for boundary in [phases[0].start, *(phase.end for phase in phases)]:
        ax.axvline(boundary, color="0.5", linewidth=0.5, zorder=1)
    if band.images > 1:
        low, high = band.mean - band.std, band.mean + band.std
        ax.fill_between(layers, low, high, color=PAIR_COLOURS[HEADLINE], alpha=0.25, linewidth=0)
    ax.plot(layers, band.mean, color=PAIR_COLOURS[HEADLINE])
    ax.set_ylabel("image–text cosine")
    _draw_marks(ax, panel)


def _draw_marks(ax: Axes, panel: _Panel) -> None:
    """Draw boundary intervals just above the panel and numerals above those."""
    across: Any = ax.get_xaxis_transform()
    height = _PANEL / _POINT
    left, right = ax.get_xlim()
    phases = panel.curve.detection.phases
    for phase, bar_row, numeral_row in zip(phases, panel.bar_rows, panel.numeral_rows, strict=True):
        colour = "0.15" if phase.supported else "0.55"
        if phase is not phases[-1]:  # the last phase ends with the model, not at a boundary
            y = 1 + (3 + _ROW_BARS * bar_row) / height
            style: Any = {"transform": across, "color": colour, "clip_on": False}
            ax.plot([phase.end_low, phase.end_high], [y, y], linewidth=0.9, solid_capstyle="butt", **style)
            ax.plot([phase.end], [y], "o", markersize=2, **style)
        middle = ((phase.start + phase.end) / 2 - left) / (right - left)
        rise = panel.bars + _ROW_NUMERALS * numeral_row
        _write(ax, _numeral(phase), (middle, 1), (0, rise), ha="center", va="bottom", fontsize=6.5, color=colour)


def _draw_key(figure: Figure, ax: Axes, phases: Sequence[Phase]) -> None:
    """List the phases under the panel."""
    width, height = figure.get_size_inches() / _POINT
    corner = ax.get_position()
    for line, phase in enumerate(phases):
        below = -(31 + 9 * line)
        where = (corner.x0, corner.y0 + (below - 2.5) / height)
        figure.add_artist(Rectangle(where, 6 / width, 5 / height, transform=figure.transFigure, **_shade(phase)))
        style: Any = {"fontsize": 6, "va": "center_baseline", "color": "black" if phase.supported else "0.45"}
        name = phase.name if _numeral(phase) != str(phase.phase) else f"{phase.phase} {phase.name}"
        interval = f" (end {phase.end_low}–{phase.end_high})" if phase.end_high > phase.end_low else ""
        _write(ax, f"{name}, {phase.start}–{phase.end}{interval}", (0, 0), (9, below), **style)
        change = f"{phase.change:+.3f}".replace("-", "−") if phase.supported else "not supported"
        _write(ax, change, (1, 0), (0, below), ha="right", **style)
