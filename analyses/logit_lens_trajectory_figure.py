"""Figure of LogitLens' trajectory: how sure each layer is, and how far from the last, for image and text tokens."""

from collections.abc import Mapping, Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.figure_pages import draw_pages
from analyses.figure_style import NOTE, LayerAxis, common_axis
from analyses.lens_trajectory import MEASURES, WHATS
from analyses.logit_lens_panels import (
    INTERVAL_NOTE,
    PLAIN_NOTE,
    LensCurve,
    colour_entries,
    draw_curve,
    draw_legend,
    identity_notes,
    lens_curves,
    lens_inches,
    lens_labels,
    lens_panels,
)
from analyses.logit_lens_results import GroupCurves, StoreLens

__all__ = ["draw_trajectory"]

_LABELS = {"entropy": "entropy (nat)", "kl": "divergence (nat)"}
_NAMES = {"image": "image tokens", "last_text": "last text token"}
_SHAPE = (len(MEASURES), len(WHATS))  # rows and columns of a store's panels
_DIVERGENCE_NOTE = "Divergence: of the last layer's distribution from the layer's own."

_Store = tuple[str, Sequence[LensCurve], Sequence[LensCurve]]  # label, curves of image tokens, of the last text token


def draw_trajectory(results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]]) -> list[Figure]:
    """Draw entropy and divergence, each of image tokens and of the last text token, on as many pages as it takes.

    Image tokens stand on the left and the last text token on the right, entropy above divergence, store below store.
    The standard deviation is drawn where a panel has one curve; several would hide each other.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
        With trajectories. Image tokens have one curve where they do not see the prompt, the last text token has one
        per prompt group.
    """
    of_whats = [lens_curves(results, curves), lens_curves(results, curves, once=False)]
    several = any(len(own) > 1 for jobs in of_whats for own in jobs)
    plain = [PLAIN_NOTE] if several else []
    legend = colour_entries([own for jobs in of_whats for own in jobs])
    axis = common_axis([(item.result.layers, item.result.block_count) for item in results])
    labels = lens_labels(results)
    figures = draw_pages(
        list(zip(labels, *of_whats, strict=True)),
        [lens_inches(label, _SHAPE) for label in labels],
        [INTERVAL_NOTE, *plain, _DIVERGENCE_NOTE, *identity_notes(of_whats[0])],
        beside=_beside,
        draw=lambda page, lines: _draw_page(page, axis, legend, lines),
    )
    _level([ax for figure in figures for ax in figure.axes])
    return figures


def _beside(notes: str) -> float:
    return 0.55 + 0.1 * notes.count("\n")


def _draw_page(stores: Sequence[_Store], axis: LayerAxis, legend: Mapping[str, Line2D], notes: str) -> Figure:
    figure, panels = lens_panels([label for label, *_ in stores], _SHAPE, _beside(notes))
    for (_, *of_whats), row in zip(stores, panels, strict=True):
        for ax, (measure, what) in zip(row, product(MEASURES, WHATS), strict=True):
            own = of_whats[WHATS.index(what)]
            for curve in own:
                assert curve.curves.trajectory is not None
                of_panel = curve.curves.trajectory[:, MEASURES.index(measure), WHATS.index(what)]
                draw_curve(ax, axis, curve, of_panel, alone=len(own) == 1)
            ax.set_ylabel(f"{_NAMES[what]}\n{_LABELS[measure]}", fontsize=6)
            axis.set_on(ax, labelled=ax.get_subplotspec().is_last_row())
    draw_legend(figure, legend)
    figure.supxlabel(notes, **NOTE)
    return figure


def _level(panels: Sequence[Axes]) -> None:
    """Let panels of one measure, on all pages, have one scale, from 0, as they are to be compared."""
    for number in range(len(MEASURES)):
        of_measure = [ax for place, ax in enumerate(panels) if place // len(WHATS) % len(MEASURES) == number]
        top = max(ax.get_ylim()[1] for ax in of_measure)
        for ax in of_measure:
            ax.set_ylim(0, top)
