"""Figure of norm-attention: the share of each role against depth, by norm and by weight, with sinks beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.figure_pages import draw_pages
from analyses.figure_style import (
    BAND_NOTE,
    NOTE,
    LayerAxis,
    common_axis,
    panel_grid,
)
from analyses.norm_attention import MEASURES
from analyses.norm_attention_panels import IDENTITY_NOTE, Panel, panels
from analyses.norm_attention_results import GroupCurves, StoreAttention, group_curves

__all__ = ["ROLE_COLOURS", "draw_shares"]

ROLE_COLOURS = {
    "special": "#999999",
    "preamble": "#E69F00",
    "image": "#D55E00",
    "instruction": "#0072B2",
    "template": "#009E73",
    "target": "#CC79A7",
    "generated": "#56B4E9",
}
_COLUMNS = {
    "attention_norm_share": ("by norm ‖Σ α f‖", "sink_norm_share"),
    "attention_share": ("by weight α", "sink_share"),
}
_ROW, _NAME = 0.7, 0.1  # inches of a row of panels, of a store's name above
_SINKS: Any = {"color": "black", "linestyle": (0, (3, 2)), "linewidth": 0.9, "label": "position 0 and BOS"}
_SINKS_NOTES = (
    "Dashed: what position 0 and BOS (sinks) take, whatever their role.",
    "Shares are of keys other than position 0 and BOS (sinks); dashed: the share that sinks take of all keys.",
)


def draw_shares(results: Sequence[StoreAttention]) -> list[Figure]:
    """Draw one row per store, prompt group and query: shares of roles by norm on the left, by weight on the right.

    Rows fill as many pages as it takes. A role that none of the samples has is not drawn.

    Blocks are the models' own numbers where all models have as many, else depths.
    """
    jobs, left_out = panels(results)
    notes = [BAND_NOTE, _SINKS_NOTES[results[0].result.without_sinks], *([IDENTITY_NOTE] if left_out else [])]
    axis = common_axis([(item.result.blocks, item.result.block_count) for item in results], "block")
    row = _ROW + _NAME * (len(results) > 1)
    return draw_pages(
        jobs,
        [row] * len(jobs),
        notes,
        beside=_beside,
        draw=lambda page, lines: _draw_page(page, row, axis, lines),
    )


def _beside(notes: str) -> float:
    return 0.85 + 0.1 * notes.count("\n")


def _draw_page(jobs: Sequence[Panel], height: float, axis: LayerAxis, notes: str) -> Figure:
    figure, axes = panel_grid(2 * len(jobs), 2, height, extra=_beside(notes))
    for row, panel in enumerate(jobs):
        result = panel.item.result
        curves = group_curves(result, panel.chosen, panel.query)
        places = axis.at(result.blocks, result.block_count)
        there = {role: n for n, role in enumerate(result.roles) if result.keys[panel.chosen, n].any()}
        for ax, (measure, (_, sinks)) in zip(axes[2 * row :], _COLUMNS.items(), strict=False):
            _draw_roles(ax, places, curves, measure, there)
            ax.plot(places, _statistic(curves, 0, sinks).sum(axis=1), **_SINKS)
            _finish(ax, axis, labelled=row == len(jobs) - 1)
            if not curves.images:
                ax.text(0.5, 0.5, "no sample has this query", transform=ax.transAxes, ha="center", color="0.35")
        images = f"{curves.images} image{'' if curves.images == 1 else 's'}"
        axes[2 * row].set_title(f"{panel.title} ({images})", loc="left", pad=3)
    for ax, (title, _) in zip(axes, _COLUMNS.values(), strict=False):
        above = 13 + 8 * jobs[0].title.count("\n")
        ax.annotate(title, (0.5, 1), (0, above), xycoords="axes fraction", textcoords="offset points", ha="center",
                    va="bottom", fontsize=6.5)  # fmt: skip
    entries = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend: Any = {"ncols": 3, "frameon": False, "handlelength": 1.4, "columnspacing": 1.0}
    names = [name for name in (*ROLE_COLOURS, _SINKS["label"]) if name in entries]  # on every page in the same order
    figure.legend([entries[name] for name in names], names, loc="outside upper center", **legend)
    figure.supylabel("share of the row", fontsize=6.5)
    figure.supxlabel(notes, **NOTE)
    return figure


def _statistic(curves: GroupCurves, number: int, measure: str) -> np.ndarray:
    return curves.statistics[number, list(MEASURES).index(measure)]


def _draw_roles(ax: Axes, places: np.ndarray, curves: GroupCurves, measure: str, roles: Mapping[str, int]) -> None:
    mean, std = (_statistic(curves, number, measure) for number in (0, 1))
    for role, number in roles.items():
        colour = ROLE_COLOURS[role]
        ax.plot(places, mean[:, number], color=colour, label=role)
        if curves.images > 1:
            low, high = mean[:, number] - std[:, number], mean[:, number] + std[:, number]
            ax.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)


def _finish(ax: Axes, axis: LayerAxis, *, labelled: bool) -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, 0.5, 1])
    axis.set_on(ax, labelled=labelled)
