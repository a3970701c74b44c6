"""Figure of LogitLens: precision and recall against captions, and agreement with the last layer, against depth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.figure_style import COLUMN_INCHES, NOTE, STYLE, TEXT_INCHES, LayerAxis, common_axis
from analyses.labels import LONGEST, short_label, store_labels
from analyses.lens_scores import VARIANTS
from analyses.logit_lens_results import CURVES, GroupCurves, StoreLens
from analyses.prompt_groups import prompt_groups

__all__ = ["ALL_PROMPTS", "draw_curves"]

ALL_PROMPTS = "all prompts"

_KIND_COLOURS = {"normal": "#0072B2", "question": "#009E73", "noisy": "#D55E00", "empty": "#CC79A7"}
_OTHER_COLOURS = ("#E69F00", "#56B4E9", "#000000", "#999999")
_MEASURES = {"precision": "precision", "recall": "recall", "agreement": "agreement with\nthe last layer"}
_LINES: Mapping[str, Any] = {
    "unique": {"linewidth": 1.2},
    "token": {"linewidth": 0.7, "linestyle": (0, (4, 2))},
    "prefix": {"linewidth": 0.7, "linestyle": (0, (1, 1.2))},
}
_LINES_DRAWN: Mapping[str, Sequence[str]] = {"precision": VARIANTS, "recall": ("unique", "prefix"), "agreement": ("",)}
_BAND_NOTE = "Line and band: mean and standard deviation over images"
_VARIANTS_NOTE = "words counted once (unique, with its band), per token,\nor as beginnings of words (prefix)."
_IDENTITY_NOTE = (
    "Image states do not see the prompt, so they are decoded once:\none curve stands for all prompts, by construction."
)
_WITHOUT = {"precision": "no captions", "recall": "no captions", "agreement": "the last layer is not there"}


class _Curve(NamedTuple):
    """One prompt group's curves and how they are shown."""

    item: StoreLens
    curves: GroupCurves
    label: str
    colour: str


def draw_curves(results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]]) -> Figure:
    """Draw the curves: of one store a panel per measure in a column, of several a row of panels per store.

    A measure that no store has is left out. Where image states do not depend on the prompt there is one curve.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
    """
    jobs = _jobs(results, curves)
    measures = [name for name in _MEASURES if any(_images(job.curves, name) for own in jobs for job in own)]
    notes = _notes(results, measures)
    rows, columns = (max(1, len(measures)), 1) if len(results) == 1 else (len(results), max(1, len(measures)))
    width = COLUMN_INCHES if columns == 1 else TEXT_INCHES
    axis = common_axis([(item.result.layers, item.result.block_count) for item in results])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.25 * rows + 0.45 + 0.1 * notes.count("\n")), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
        panels = axes.T if len(results) == 1 else axes  # (store, measure)
        highest = _highest(jobs)
        labels = store_labels([item.identity for item in results])
        for own, row in zip(jobs, panels, strict=True):
            for ax, measure in zip(row, measures, strict=False):
                _draw_panel(ax, axis, own, measure)
                ax.set_ylim(-0.02, 1.02 if measure == "agreement" else highest)
                ax.set_ylabel(_MEASURES[measure])
            if len(results) > 1:
                row[0].set_title(short_label(labels[own[0].item.identity.store], LONGEST), loc="left", pad=3)
            for ax in row:
                axis.set_on(ax, labelled=ax in axes[-1])
        if not measures:
            axes[0, 0].text(0.5, 0.5, "neither captions nor the last layer", transform=axes[0, 0].transAxes,
                            ha="center", va="center", color="0.35")  # fmt: skip
        _draw_legend(figure, jobs, measures)
        figure.supxlabel(notes, **NOTE)
    return figure


def _jobs(results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]]) -> list[list[_Curve]]:
    others: dict[str, str] = {}
    jobs = []
    for item, of_store in zip(results, curves, strict=True):
        groups = [group for group, _ in prompt_groups(item.result.samples)]
        if item.identity.image_states_depend_on_prompt is False and len(groups) > 1:
            jobs.append([_Curve(item, of_store[0], ALL_PROMPTS, _KIND_COLOURS["normal"])])
            continue
        own = []
        for group, found in zip(groups, of_store, strict=True):
            colour = _KIND_COLOURS.get(group.kind)
            if colour is None:
                colour = others.setdefault(group.title, _OTHER_COLOURS[len(others) % len(_OTHER_COLOURS)])
            own.append(_Curve(item, found, short_label(group.title, 16), colour))
        jobs.append(own)
    return jobs


def _notes(results: Sequence[StoreLens], measures: Sequence[str]) -> str:
    scored = "precision" in measures or "recall" in measures
    notes = [f"{_BAND_NOTE}; {_VARIANTS_NOTE}" if scored else f"{_BAND_NOTE}."]
    if any(item.identity.image_states_depend_on_prompt is False for item in results):
        notes.append(_IDENTITY_NOTE)
    return "\n".join(notes)


def _places(measure: str, variant: str) -> int:
    return CURVES.index((measure, variant))


def _images(curves: GroupCurves, measure: str) -> int:
    return int(curves.images[_places(measure, _LINES_DRAWN[measure][0])])


def _highest(jobs: Sequence[Sequence[_Curve]]) -> float:
    """Upper end of the axes of precision and recall, which are to be compared."""
    chosen = [number for number, (measure, _) in enumerate(CURVES) if measure != "agreement"]
    tops = [np.nanmax(job.curves.statistics[:2, chosen].sum(axis=0), initial=0.0) for own in jobs for job in own]
    means = [np.nanmax(job.curves.statistics[0, chosen], initial=0.05) for own in jobs for job in own]
    return min(1.02, 1.05 * max(*tops, *means))


def _draw_panel(ax: Axes, axis: LayerAxis, own: Sequence[_Curve], measure: str) -> None:
    drawn = False
    for job in own:
        places = axis.at(job.item.result.layers, job.item.result.block_count)
        images = _images(job.curves, measure)
        drawn = drawn or images > 0
        for variant in _LINES_DRAWN[measure] if images else ():
            mean, std = job.curves.statistics[:2, _places(measure, variant)]
            ax.plot(places, mean, color=job.colour, **_LINES.get(variant, _LINES["unique"]))
            if variant in ("", "unique") and images > 1:
                ax.fill_between(places, mean - std, mean + std, color=job.colour, alpha=0.2, linewidth=0)
    if not drawn:
        ax.text(0.5, 0.5, _WITHOUT[measure], transform=ax.transAxes, ha="center", va="center", color="0.35")


def _draw_legend(figure: Figure, jobs: Sequence[Sequence[_Curve]], measures: Sequence[str]) -> None:
    entries: dict[str, Line2D] = {}
    for own in jobs:
        for job in own:
            entries.setdefault(job.label, Line2D([], [], color=job.colour, linewidth=1.2))
    if "precision" in measures or "recall" in measures:
        entries |= {name: Line2D([], [], color="0.3", **_LINES[name]) for name in VARIANTS}
    options: Any = {"ncols": 4, "frameon": False, "handlelength": 1.8, "columnspacing": 1.0}
    figure.legend([*entries.values()], [*entries], loc="outside upper center", **options)
