"""Maps of norm-attention: block by position (Wei et al. 2024, figure 4), and the patches of the image at some blocks.

A cell is the mean over samples of the key's share of the row's norms. Colours are logarithmic, because few keys take
most; grey is 0: a key after the query, or one that no sample has.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyses.attention_maps import PlaceMap
from analyses.figure_pages import draw_pages
from analyses.figure_style import COLUMN_INCHES, NOTE
from analyses.heat_style import draw_strip_bar, draw_strips, heat_colours, label_heat, positive, strip_axes
from analyses.key_places import SEGMENTS
from analyses.norm_attention_panels import IDENTITY_NOTE, Panel, panels
from analyses.norm_attention_results import StoreAttention
from analyses.part_attention import MAP_MEASURES

__all__ = ["draw_patches", "draw_positions"]

_MEASURE = MAP_MEASURES.index("attention_norm_share")
_SHARE = "share of the row's norms"
_MOST_BLOCKS = 4
_BELOW = 10  # points, a line
_MAP, _GRID, _NAME = 0.72, 0.85, 0.12  # inches of a map, of a row of grids, of a store's name above
_TEXT_PART = 0.7  # of the width of the image, which text tokens take together at most
_WIDEST = 0.04  # of the same, one text token
_POSITION_NOTE = (
    "Mean over samples. Positions (in brackets, how many): before the image, of the image, of the text after it, "
    "of the template's end, which is aligned at the sequence's end. Text tokens are drawn wider. Grey: 0, as after "
    "the query."
)
_PATCH_NOTE = "Share of the row's norms, mean over samples, on the grid of patches; each row has its own colours."
_SINKS_NOTE = "Shares without position 0 and BOS (sinks), which are left out."


def draw_positions(results: Sequence[StoreAttention]) -> list[Figure]:
    """Draw one heat map of block by position per store, prompt group and query, on as many pages as it takes.

    All maps have the same colours.
    """
    jobs, left_out = panels(results)
    notes = _notes(results, [_POSITION_NOTE], left_out)
    row = _MAP + _NAME * (len(results) > 1)
    colours = heat_colours([_positions(job) for job in jobs])
    return draw_pages(
        jobs,
        [row] * len(jobs),
        notes,
        beside=_beside_maps,
        draw=lambda page, lines: _draw_maps(page, row, colours, lines),
    )


def draw_patches(results: Sequence[StoreAttention]) -> list[Figure]:
    """Draw the image's patches at some blocks, one row per store with a grid, prompt group and query.

    Rows fill as many pages as it takes.
    """
    jobs, left_out = panels([item for item in results if item.result.maps.grid is not None])
    notes = _notes(results, [_PATCH_NOTE], left_out)
    row = _GRID + _NAME * (len(results) > 1)
    return draw_strips(jobs, row, notes, _draw_grid_row)


def _positions(job: Panel) -> NDArray[np.float64]:
    return job.item.result.maps.places.mean[_MEASURE, job.number, job.query]


def _beside_maps(notes: str) -> float:
    return 0.5 + 0.1 * notes.count("\n")


def _draw_maps(jobs: Sequence[Panel], row: float, colours: dict[str, Any], notes: str) -> Figure:
    figure = Figure(figsize=(COLUMN_INCHES, row * len(jobs) + _beside_maps(notes)), layout="constrained")
    axes: list[Axes] = list(figure.subplots(len(jobs), 1, squeeze=False).ravel())
    for ax, job in zip(axes, jobs, strict=True):
        places = job.item.result.maps.places
        seen = places.samples[job.number].max(axis=0) > 0
        edges = _edges(places, seen)
        blocks = job.item.result.blocks
        mesh = ax.pcolormesh(edges, _block_edges(blocks), positive(_positions(job)[:, seen]), **colours)
        _label_positions(ax, places, seen, edges)
        ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
        ax.set_ylabel("block")
        ax.set_title(f"{job.title} ({places.samples[job.number, job.query].max()} samples)", loc="left", pad=3)
    bar = figure.colorbar(mesh, ax=axes, label=_SHARE, location="bottom", pad=0.01, aspect=50, fraction=0.03)
    label_heat(bar, 5)
    figure.supxlabel(notes, **NOTE)
    return figure


def _notes(results: Sequence[StoreAttention], first: list[str], left_out: bool) -> list[str]:
    return [
        *first,
        *([_SINKS_NOTE] if results[0].result.without_sinks else []),
        *([IDENTITY_NOTE] if left_out else []),
    ]


def _edges(places: PlaceMap, seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Where columns begin and end: image tokens are 1 wide, text tokens as much more as fits."""
    text = places.segment[seen] != SEGMENTS.index("image")
    image = max(1, int((~text).sum()))
    wide = float(np.clip(_TEXT_PART * image / max(1, text.sum()), 1, max(1, _WIDEST * image)))
    return np.concatenate([[0], np.cumsum(np.where(text, wide, 1.0))])


def _block_edges(blocks: NDArray[np.int32]) -> NDArray[np.float64]:
    middles = (blocks[:-1] + blocks[1:]) / 2
    return np.concatenate([[blocks[0] - 0.5], middles, [blocks[-1] + 0.5]])


def _label_positions(ax: Axes, places: PlaceMap, seen: NDArray[np.bool_], edges: NDArray[np.float64]) -> None:
    segment = places.segment[seen]
    ticks, names = [], []
    for number, name in enumerate(SEGMENTS):
        own = np.flatnonzero(segment == number)
        if not len(own):
            continue
        left, right = edges[own[0]], edges[own[-1] + 1]
        ticks.append((left + right) / 2)
        names.append(f"{name} ({len(own)})")
        if own[0]:
            ax.axvline(left, color="white", linewidth=1.2)
    # What comes last is narrow, so its name stands below that of its neighbour.
    ax.set_xticks(ticks[:-1], names[:-1])
    ax.set_xticks(ticks[-1:], names[-1:], minor=True)
    ax.tick_params(axis="x", length=0)
    ax.tick_params(axis="x", which="minor", length=0, labelsize=6, pad=_BELOW)


def _draw_grid_row(part: Any, job: Panel) -> None:
    """Draw one row of grids on a subfigure."""
    result = job.item.result
    grid = result.maps.grid
    assert grid is not None
    maps = grid.mean[_MEASURE, job.number, job.query]
    chosen = np.unique(np.linspace(0, len(maps) - 1, min(len(maps), _MOST_BLOCKS)).round().astype(int))
    colours = heat_colours([maps[chosen]])
    axes, place = strip_axes(part, _MOST_BLOCKS)
    for ax, block in zip(axes, chosen, strict=False):
        image = ax.imshow(positive(maps[block]), interpolation="nearest", **colours)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_xlabel(f"block {result.blocks[block]}", labelpad=2)
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    draw_strip_bar(place, image)
    part.suptitle(f"{job.title} ({grid.samples[job.number, job.query]} samples)", x=0.01, ha="left", fontsize=6.5)
