"""Figure of contextualization: per store and prompt group, the three mean curves with their band over images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analyses.contextualization_results import StoreResult
from analyses.curves import band, image_curves
from analyses.figure_pages import draw_pages
from analyses.figure_style import (
    ADJUSTMENT_NOTES,
    BAND_NOTE,
    COSINE_NAMES,
    NOTE,
    PAIR_COLOURS,
    PAIR_NAMES,
    LayerAxis,
    common_axis,
    panel_grid,
    share_vertical,
)
from analyses.labels import LONGEST, short_label, store_labels
from analyses.prompt_groups import PromptGroup, prompt_groups

__all__ = ["IDENTITY_NOTE", "draw_contextualization", "has_one_image_curve"]

IDENTITY_NOTE = (
    "Image states that do not see the prompt give one image–image curve\n"
    "for all prompts by construction: it is drawn once."
)
_MOST_IN_A_COLUMN = 2
_ROW, _NAME = 1.05, 0.1  # inches of a row of panels, of a store's name above
# Letters of a store's label and of a group's title, by columns.
_LETTERS = {1: (LONGEST, LONGEST), 2: (25, 14)}

_NORMED: Any = {"marker": "o", "markerfacecolor": "white", "markersize": 3.5}


class _Panel(NamedTuple):
    """One store's prompt group, its samples, and the pairs that are drawn elsewhere."""

    item: StoreResult
    group: PromptGroup
    chosen: NDArray[np.bool_]
    without: set[str]


class _Look(NamedTuple):
    """What all pages share: the horizontal axis, columns of panels, labels of several stores and the value's name."""

    axis: LayerAxis
    columns: int
    labels: Mapping[str, str]
    cosine: str


def draw_contextualization(results: Sequence[StoreResult]) -> list[Figure]:
    """Draw one panel per store and prompt group, all on the same axes, on as many pages as it takes.

    Where image states cannot depend on the prompt, the image-image curve of all prompts is an identity and no finding:
    it is drawn in the store's first panel only, and a note says so. Rows with self-pairs are not drawn. A hollow
    marker at the last layer is its value after the final norm. Layers are the models' own numbers where all models have
    as many blocks, else depths.
    """
    jobs = [panel for item in results for panel in _panels(item)]
    notes = [BAND_NOTE, ADJUSTMENT_NOTES.get(results[0].result.adjustment, "")]
    notes += [IDENTITY_NOTE] if any(job.without for job in jobs) else []
    several = len(results) > 1
    look = _Look(
        common_axis([(item.result.layers, item.result.block_count) for item in results]),
        1 if len(jobs) <= _MOST_IN_A_COLUMN else 2,
        store_labels([item.identity for item in results]) if several else {},
        COSINE_NAMES[results[0].result.adjustment],
    )
    rows = [jobs[first : first + look.columns] for first in range(0, len(jobs), look.columns)]
    row = _ROW + _NAME * several
    figures = draw_pages(
        rows,
        [row] * len(rows),
        notes,
        beside=_beside,
        draw=lambda page, lines: _draw_page([job for own in page for job in own], row, look, lines),
    )
    share_vertical([ax for figure in figures for ax in figure.axes])
    return figures


def _beside(notes: str) -> float:
    return 0.6 + 0.1 * (notes.count("\n") + 1)


def _draw_page(jobs: Sequence[_Panel], row: float, look: _Look, notes: str) -> Figure:
    for_store, for_group = _LETTERS[look.columns]
    figure, axes = panel_grid(len(jobs), look.columns, row, extra=_beside(notes))
    for number, (ax, job) in enumerate(zip(axes, jobs, strict=True)):
        images = _draw_panel(ax, look.axis, job)
        store = f"{short_label(look.labels[job.item.identity.store], for_store)}\n" if look.labels else ""
        ax.set_title(f"{store}{short_label(job.group.title, for_group)} ({images} images)", loc="left", pad=3)
        look.axis.set_on(ax, labelled=number + look.columns >= len(jobs))
    handles, names = _legend(axes)
    legend: Any = {"ncols": 3 if len(names) <= 3 else 2, "frameon": False, "handlelength": 1.4}
    figure.legend(handles, names, loc="outside upper center", columnspacing=1.0, **legend)
    figure.supylabel(look.cosine, fontsize=6.5)
    figure.supxlabel(notes, **NOTE)
    return figure


def has_one_image_curve(item: StoreResult) -> bool:
    """Say whether image states do not see the prompt, so that all prompts have one image-image curve."""
    return item.identity.image_states_depend_on_prompt is False


def _panels(item: StoreResult) -> list[_Panel]:
    groups = prompt_groups(item.result.samples)
    again = {"image-image"} if has_one_image_curve(item) else set()
    return [_Panel(item, group, chosen, again if number else set()) for number, (group, chosen) in enumerate(groups)]


def _legend(axes: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    entries: dict[str, Artist] = {
        label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if any(line.get_marker() == "o" for ax in axes for line in ax.lines):
        entries["after final norm"] = Line2D([], [], color="0.3", linestyle="none", **_NORMED)
    return list(entries.values()), list(entries)


def _draw_panel(ax: Axes, axis: LayerAxis, panel: _Panel) -> int:
    """Draw the curves; return how many images the most complete one has."""
    result, chosen = panel.item.result, panel.chosen
    samples = result.samples[chosen]
    places = axis.at(result.layers, result.block_count)
    most = 0
    for row, (pair, self_pairs) in enumerate(result.rows):
        if self_pairs or pair in panel.without:
            continue
        own = image_curves(samples, result.cosine[chosen, :, row])
        curve = band(own.curves, own.items)
        most = max(most, curve.images)
        colour = PAIR_COLOURS[pair]
        ax.plot(places, curve.mean, color=colour, label=PAIR_NAMES[pair])
        if curve.images > 1:
            low, high = curve.mean - curve.std, curve.mean + curve.std
            ax.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
        if result.normed is not None and curve.images:
            value = image_curves(samples, result.normed[chosen, row : row + 1]).curves.mean()
            ax.plot(places[-1:], [value], color=colour, clip_on=False, **_NORMED)
    if not most:
        ax.text(0.5, 0.5, "no image has a curve", transform=ax.transAxes, ha="center", va="center", color="0.35")
    return most
