"""Which curves figures of LogitLens have, in which colours, and the panels that they are drawn in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analyses.figure_style import COLUMN_INCHES, STYLE, TEXT_INCHES
from analyses.labels import LONGEST, short_label, store_labels
from analyses.logit_lens_results import GroupCurves, StoreLens
from analyses.prompt_colours import prompt_colours
from analyses.prompt_groups import prompt_groups

__all__ = [
    "ALL_PROMPTS",
    "BAND_NOTE",
    "IDENTITY_NOTE",
    "LensCurve",
    "colour_entries",
    "draw_legend",
    "identity_notes",
    "lens_curves",
    "lens_panels",
]

ALL_PROMPTS = "all prompts"
BAND_NOTE = "Line and band: mean and standard deviation over images."
IDENTITY_NOTE = (
    "Image states do not see the prompt, so they are decoded once:\none curve stands for all prompts, by construction."
)

_ALL_COLOUR = "#333333"
_EM_INCHES = 6.5 / 72  # of the legend's font
_ENTRY_EM = 3.6  # handle and gaps
_LETTER_EM = 0.55


class LensCurve(NamedTuple):
    """One prompt group's curves and how they are shown."""

    item: StoreLens
    curves: GroupCurves
    label: str
    colour: str


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
    found = []
    for item, groups, of_store in zip(results, groups_of, curves, strict=True):
        if once and item.identity.image_states_depend_on_prompt is False and len(groups) > 1:
            found.append([LensCurve(item, of_store[0], ALL_PROMPTS, _ALL_COLOUR)])
            continue
        found.append(
            [
                LensCurve(item, one, short_label(group.title, 16), colours[group])
                for group, one in zip(groups, of_store, strict=True)
            ]
        )
    return found


def lens_panels(results: Sequence[StoreLens], measures: int, extra: float) -> tuple[Figure, NDArray[np.object_]]:
    """Make panels: of one store a column as wide as a paper's, of several a row per store, as wide as its text.

    Parameters
    ----------
    results : sequence of StoreLens
    measures : int
        Panels per store.
    extra : float
        Inches beside them, for a legend and notes.

    Returns
    -------
    Figure
    array (store, measure) of Axes
    """
    rows, columns = (measures, 1) if len(results) == 1 else (len(results), measures)
    with mpl.rc_context(STYLE):
        width = COLUMN_INCHES if columns == 1 else TEXT_INCHES
        figure = Figure(figsize=(width, 1.25 * rows + extra), layout="constrained")
        axes: NDArray[np.object_] = figure.subplots(rows, columns, sharex=True, squeeze=False)
        panels = axes.T if len(results) == 1 else axes
        labels = store_labels([item.identity for item in results])
        for item, row in zip(results, panels, strict=True):
            first: Axes = row[0]
            if len(results) > 1:
                first.set_title(short_label(labels[item.identity.store], LONGEST), loc="left", pad=3)
    return figure, panels


def identity_notes(jobs: Sequence[Sequence[LensCurve]]) -> list[str]:
    """Say why prompts share a curve, where some do; one prompt group alone leaves nothing to explain."""
    return [IDENTITY_NOTE] if any(job.label == ALL_PROMPTS for own in jobs for job in own) else []


def colour_entries(jobs: Sequence[Sequence[LensCurve]]) -> dict[str, Line2D]:
    """Legend entries of the curves' colours; none where all curves are of one kind, which no legend need tell apart."""
    entries = {job.label: Line2D([], [], color=job.colour, linewidth=1.2) for own in jobs for job in own}
    return entries if len(entries) > 1 else {}


def draw_legend(figure: Figure, entries: Mapping[str, Line2D]) -> None:
    """Draw one legend above all panels, row by row, as wide as the figure allows; without entries none."""
    if not entries:
        return
    entry = _EM_INCHES * (_ENTRY_EM + _LETTER_EM * max(map(len, entries)))
    columns = min(len(entries), max(1, int(figure.get_figwidth() / entry)))
    options: Any = {"ncols": columns, "frameon": False, "handlelength": 1.8, "columnspacing": 1.0}
    names = [*entries]
    by_column = [name for first in range(columns) for name in names[first::columns]]  # as matplotlib fills a legend
    figure.legend([entries[name] for name in by_column], by_column, loc="outside upper center", **options)
