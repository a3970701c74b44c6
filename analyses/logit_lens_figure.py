"""Figure of LogitLens: precision and recall against captions, and agreement with the last layer, against depth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.figure_pages import draw_pages
from analyses.figure_style import NOTE, LayerAxis, common_axis
from analyses.lens_scores import VARIANTS
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
from analyses.logit_lens_results import CURVES, GroupCurves, StoreLens

__all__ = ["draw_curves"]

_MEASURES = {"precision": "precision", "recall": "recall", "agreement": "agreement with\nthe last layer"}
_UNIQUE: Any = {"linewidth": 1.2}
_OTHERS: Mapping[str, Any] = {
    "token": {"linewidth": 0.7, "linestyle": (0, (4, 2))},
    "prefix": {"linewidth": 0.7, "linestyle": (0, (1, 1.2))},
}
_LINES_DRAWN: Mapping[str, Sequence[str]] = {"precision": VARIANTS, "recall": ("unique", "prefix"), "agreement": ("",)}
"""Variants of each measure; the first has the bands. Recall of token is that of unique."""
_UNIQUE_NOTE = "Words count once; the table has the other variants."
_VARIANTS_NOTE = (
    "Words count once (unique, with its bands), with repetition (token), or as beginnings of the captions' words "
    "(prefix)."
)
_WITHOUT = {"precision": "no captions", "recall": "no captions", "agreement": "the last layer is not there"}


class _Look(NamedTuple):
    """What all pages share: axis, measures, rows and columns of a store's panels, upper end of scores, legend."""

    axis: LayerAxis
    measures: list[str]
    shape: tuple[int, int]
    highest: float
    legend: dict[str, Line2D]


def draw_curves(results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]]) -> list[Figure]:
    """Draw the curves: of one store a panel per measure in a column, of several a row of narrow panels per store.

    Stores fill as many pages as it takes.
    A measure that no store has is left out. Where image states do not depend on the prompt there is one curve. A store
    with one curve shows all variants; several would hide each other, so they are of unique words alone.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
    """
    jobs = lens_curves(results, curves)
    measures = [name for name in _MEASURES if any(_images(job.curves, name) for own in jobs for job in own)]
    scored = "precision" in measures or "recall" in measures
    variants = VARIANTS if any(len(own) == 1 for own in jobs) else VARIANTS[:1]
    look = _Look(
        common_axis([(item.result.layers, item.result.block_count) for item in results]),
        measures,
        (max(1, len(measures)), 1) if len(results) == 1 else (1, max(1, len(measures))),
        _highest(jobs),
        _legend(jobs, variants if scored and len(variants) > 1 else ()),
    )
    labels = lens_labels(results)
    return draw_pages(
        list(zip(labels, jobs, strict=True)),
        [lens_inches(label, look.shape) for label in labels],
        _notes(jobs, variants if scored else ()),
        beside=_beside,
        draw=lambda page, lines: _draw_page(page, look, lines),
    )


def _beside(notes: str) -> float:
    return 0.55 + 0.1 * notes.count("\n")


def _draw_page(stores: Sequence[tuple[str, Sequence[LensCurve]]], look: _Look, notes: str) -> Figure:
    figure, panels = lens_panels([label for label, _ in stores], look.shape, _beside(notes))
    for (_, own), row in zip(stores, panels, strict=True):
        for ax, measure in zip(row, look.measures, strict=False):
            _draw_panel(ax, look.axis, own, measure)
            ax.set_ylim(-0.02, 1.02 if measure == "agreement" else look.highest)
            ax.set_ylabel(_MEASURES[measure])
            look.axis.set_on(ax, labelled=ax.get_subplotspec().is_last_row())
            if look.shape[0] == 1:
                ax.locator_params(nbins=3)
    if not look.measures:
        panels[0, 0].text(0.5, 0.5, "neither captions nor the last layer", ha="center", va="center")
        panels[0, 0].set_axis_off()
    draw_legend(figure, look.legend)
    figure.supxlabel(notes, **NOTE)
    return figure


def _notes(jobs: Sequence[Sequence[LensCurve]], variants: Sequence[str]) -> list[str]:
    scores = [_VARIANTS_NOTE if len(variants) > 1 else _UNIQUE_NOTE] if variants else []
    plain = [PLAIN_NOTE] if any(len(own) > 1 for own in jobs) else []
    return [INTERVAL_NOTE, *plain, *scores, *identity_notes(jobs)]


def _images(curves: GroupCurves, measure: str) -> int:
    return int(curves.images[CURVES.index((measure, _LINES_DRAWN[measure][0]))])


def _highest(jobs: Sequence[Sequence[LensCurve]]) -> float:
    """Upper end of the axes of precision and recall, which are to be compared."""
    tops = [0.1]
    for job in (job for own in jobs for job in own):
        for number, (measure, variant) in enumerate(CURVES):
            mean, std = job.curves.statistics[:2, number]
            if measure != "agreement" and np.isfinite(mean).all():
                tops.append(float((mean + np.nan_to_num(std) * (variant == "unique")).max()))
    return min(1.02, 1.05 * max(tops))


def _draw_panel(ax: Axes, axis: LayerAxis, own: Sequence[LensCurve], measure: str) -> None:
    alone = len(own) == 1
    there = [job for job in own if _images(job.curves, measure)]
    for job in there:
        first, *others = _LINES_DRAWN[measure]
        statistics = job.curves.statistics[:, CURVES.index((measure, first))]
        draw_curve(ax, axis, job, statistics, alone=alone, most=1.0)
        places = axis.at(job.item.result.layers, job.item.result.block_count)
        for variant in others if alone else ():
            mean = job.curves.statistics[0, CURVES.index((measure, variant))]
            marker = "o" if len(places) == 1 else ""  # a line through one layer would be invisible
            ax.plot(places, mean, color=job.colour, marker=marker, **_OTHERS[variant])
    if not there:
        ax.text(0.5, 0.5, _WITHOUT[measure], transform=ax.transAxes, ha="center", va="center", color="0.35")


def _legend(jobs: Sequence[Sequence[LensCurve]], variants: Sequence[str]) -> dict[str, Line2D]:
    colours = colour_entries(jobs)
    colour = "0.3" if colours else jobs[0][0].colour
    looks = {VARIANTS[0]: _UNIQUE, **_OTHERS}
    return colours | {name: Line2D([], [], color=colour, **looks[name]) for name in variants}
