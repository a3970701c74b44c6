"""Which curves figures of LogitLens have, in which colours, and the panels that they are drawn in."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analyses.figure_style import COLUMN_INCHES, LayerAxis
from analyses.labels import LONGEST, short_label, store_labels
from analyses.logit_lens_results import GroupCurves, StoreLens
from analyses.prompt_colours import prompt_colours
from analyses.prompt_groups import prompt_groups

__all__ = [
    "ALL_PROMPTS",
    "IDENTITY_NOTE",
    "INTERVAL_NOTE",
    "PLAIN_NOTE",
    "LensCurve",
    "colour_entries",
    "draw_curve",
    "draw_legend",
    "identity_notes",
    "lens_curves",
    "lens_inches",
    "lens_labels",
    "lens_panels",
]

ALL_PROMPTS = "all prompts"
IDENTITY_NOTE = (
    "Image states do not see the prompt, so they are decoded once:\none curve stands for all prompts, by construction."
)

INTERVAL_NOTE = (
    "Line: mean over images. Dark band: 95 % bootstrap interval of the mean; pale band: standard deviation over images."
)
PLAIN_NOTE = "Panels of several curves have no pale band."

_ALL_COLOUR = "#333333"
# Where curves coincide, those above have gaps, or are thinner, so that all of them are seen.
_LOOKS: Any = (
    {"linewidth": 2.0, "linestyle": "-", "markersize": 4.0, "zorder": 2.0},
    {"linewidth": 1.4, "linestyle": (0, (4, 2)), "markersize": 3.2, "zorder": 2.1},
    {"linewidth": 1.1, "linestyle": (2, (1.5, 3)), "markersize": 2.4, "zorder": 2.2},
    {"linewidth": 0.7, "linestyle": (0, (6, 2, 1, 2)), "markersize": 1.6, "zorder": 2.3},
)
_ONE_LOOK: Any = {"linewidth": 1.2, "linestyle": "-", "markersize": 2.5}
_MOST_MARKED = 12  # layers; a line through one layer would be invisible without its mark
_ROW, _TITLE = 0.95, 0.14  # inches of a row of panels, of a store's name
_EM_INCHES = 6 / 72  # of the legend's font
_ENTRY_EM = 4.2  # handle and gaps
_LETTER_EM = 0.55


class LensCurve(NamedTuple):
    """One prompt group's curves and how they are shown; ``look`` is of lines and marks."""

    item: StoreLens
    curves: GroupCurves
    label: str
    colour: str
    look: Mapping[str, Any]


def lens_curves(
    results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]], *, once: bool = True
) -> list[list[LensCurve]]:
    """List the curves of every store.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
    once : bool
        Whether prompts that the image cannot see share one curve.
    """
    groups_of = [[group for group, _ in prompt_groups(item.result.samples)] for item in results]
    colours = prompt_colours([group for groups in groups_of for group in groups])
    looks = dict(zip(colours, cycle(_LOOKS), strict=False)) if len(colours) > 1 else dict.fromkeys(colours, _ONE_LOOK)
    found = []
    for item, groups, of_store in zip(results, groups_of, curves, strict=True):
        if once and item.identity.image_states_depend_on_prompt is False and len(groups) > 1:
            found.append([LensCurve(item, of_store[0], ALL_PROMPTS, _ALL_COLOUR, _ONE_LOOK)])
            continue
        found.append(
            [
                LensCurve(item, one, short_label(group.title, 16), colours[group], looks[group])
                for group, one in zip(groups, of_store, strict=True)
            ]
        )
    return found


def lens_panels(labels: Sequence[str], shape: tuple[int, int], extra: float) -> tuple[Figure, NDArray[np.object_]]:
    """Make the panels of every store, store below store.

    Parameters
    ----------
    labels : sequence of str
        What stands above the panels of each store; empty for one that needs no name.
    shape : (int, int)
        Rows and columns of panels of a store.
    extra : float
        Inches beside them, for a legend and notes.

    Returns
    -------
    Figure
    array (store, panel) of Axes
        Panels row by row.
    """
    height = sum(lens_inches(label, shape) for label in labels) + extra
    figure = Figure(figsize=(COLUMN_INCHES, height), layout="constrained")
    axes: NDArray[np.object_] = figure.subplots(len(labels) * shape[0], shape[1], sharex=True, squeeze=False)
    panels = axes.reshape(len(labels), -1)
    for label, row in zip(labels, panels, strict=True):
        first: Axes = row[0]
        first.set_title(label, loc="left", pad=3)
    return figure, panels


def lens_labels(results: Sequence[StoreLens]) -> list[str]:
    """Name every store for `lens_panels`; one alone needs no name."""
    labels = store_labels([item.identity for item in results])
    return [short_label(labels[item.identity.store], LONGEST) if len(results) > 1 else "" for item in results]


def lens_inches(label: str, shape: tuple[int, int]) -> float:
    """Height of the panels of a store."""
    return _ROW * shape[0] + _TITLE * bool(label)


def draw_curve(
    ax: Axes,
    axis: LayerAxis,
    curve: LensCurve,
    statistics: NDArray[np.float64],
    *,
    alone: bool,
    most: float = np.inf,
) -> None:
    """Draw a mean with its bands.

    Parameters
    ----------
    ax : Axes
    axis : LayerAxis
    curve : LensCurve
    statistics : array (statistic, layer), float64
        Mean, standard deviation and both ends of the interval of the mean; a band with NaN is left out.
    alone : bool
        Whether no other curve is drawn there; several standard deviations would hide each other.
    most : float
        The greatest value that there is.
    """
    mean, std, low, high = statistics
    places = axis.at(curve.item.result.layers, curve.item.result.block_count)
    marker = "o" if len(places) <= _MOST_MARKED else ""
    ax.plot(places, mean, color=curve.colour, marker=marker, clip_on=False, **curve.look)  # marks at 0 and 1 are whole
    style: Any = {"color": curve.colour, "linewidth": 0}
    if alone and np.isfinite(std).all():
        ax.fill_between(places, np.maximum(mean - std, 0), np.minimum(mean + std, most), alpha=0.18, **style)
    if np.isfinite(low).all():
        ax.fill_between(places, low, high, alpha=0.4 if alone else 0.2, **style)


def identity_notes(jobs: Sequence[Sequence[LensCurve]]) -> list[str]:
    """Say why prompts share a curve, where some do; one prompt group alone leaves nothing to explain."""
    return [IDENTITY_NOTE] if any(job.label == ALL_PROMPTS for own in jobs for job in own) else []


def colour_entries(jobs: Sequence[Sequence[LensCurve]]) -> dict[str, Line2D]:
    """Legend entries of the curves' colours; none where all curves are of one kind, which no legend need tell apart."""
    entries = {
        job.label: Line2D([], [], color=job.colour, linewidth=job.look["linewidth"], linestyle=job.look["linestyle"])
        for own in jobs
        for job in own
    }
    return entries if len(entries) > 1 else {}


def draw_legend(figure: Figure, entries: Mapping[str, Line2D]) -> None:
    """Draw one legend above all panels, row by row, as wide as the figure allows; without entries none."""
    if not entries:
        return
    entry = _EM_INCHES * (_ENTRY_EM + _LETTER_EM * max(map(len, entries)))
    columns = min(len(entries), max(1, int(figure.get_figwidth() / entry)))
    options: Any = {"ncols": columns, "frameon": False, "handlelength": 2.4, "columnspacing": 1.0}
    names = [*entries]
    by_column = [name for first in range(columns) for name in names[first::columns]]  # as matplotlib fills a legend
    figure.legend([entries[name] for name in by_column], by_column, loc="outside upper center", **options)
