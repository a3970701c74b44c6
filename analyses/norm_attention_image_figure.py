"""Where the queries of one sample look on its image, at some blocks: weights and norms, over the picture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from analyses.heat_style import draw_strip_bar, draw_strips, heat_colours, positive, strip_axes
from analyses.identity import StoreIdentity
from analyses.image_attention import ImageAttention
from analyses.labels import LONGEST, short_label, store_labels
from analyses.norm_attention_panels import QUERY_NAMES
from analyses.picture import show_on_grid, show_picture

__all__ = ["draw_image"]

_MOST_BLOCKS = 3
_OVER = 0.62  # opacity over the picture
_MEASURES = ("attention weight, mean over heads", "norms of what patches give")
_NOTE = "One sample. Share of the row; each line has its own colours."
_NO_PICTURE = "The store keeps no pictures: strata extract --thumbnails adds them."
_SINKS_NOTE = "Shares without position 0 and BOS (sinks), which are left out."


class _Line(NamedTuple):
    item: ImageAttention
    values: np.ndarray  # (block, row, col)
    title: str


def draw_image(found: Sequence[tuple[StoreIdentity, ImageAttention]], *, without_sinks: bool) -> list[Figure]:
    """Draw one line of blocks per store, query and measure, on as many pages as it takes."""
    lines = list(_lines(found))
    pictures = all(item.picture.pixels is not None for _, item in found)
    notes = [_NOTE, *([] if pictures else [_NO_PICTURE]), *([_SINKS_NOTE] if without_sinks else [])]
    return draw_strips(lines, 1.05 + 0.1 * (len(found) > 1), notes, _draw_line)


def _lines(found: Sequence[tuple[StoreIdentity, ImageAttention]]) -> list[_Line]:
    labels = store_labels([identity for identity, _ in found])
    lines = []
    for identity, item in found:
        store = f"{short_label(labels[identity.store], LONGEST)}\n" if len(found) > 1 else ""
        for query, name in enumerate(item.queries):
            for measure, title in enumerate(_MEASURES):
                whose = f"{store}{short_label(item.sample_id, 20)}, {QUERY_NAMES.get(name, name)}: {title}"
                lines.append(_Line(item, item.shares[measure, query], whose))
    return lines


def _draw_line(part: Any, line: _Line) -> None:
    blocks, picture = line.item.blocks, line.item.picture
    chosen = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), _MOST_BLOCKS)).round().astype(int))
    colours = heat_colours([line.values[chosen]])
    if picture.pixels is not None:
        colours["alpha"] = _OVER
    (first, *axes), place = strip_axes(part, 1 + _MOST_BLOCKS)
    show_picture(first, picture, beneath=False)
    first.set_xlabel("the image" if picture.pixels is not None else "no picture", labelpad=2)
    first.spines[:].set_visible(False)
    for ax, block in zip(axes, chosen, strict=False):
        show_picture(ax, picture, beneath=True)
        image = show_on_grid(ax, positive(line.values[block]), line.item.grid, **colours)
        ax.spines[:].set_visible(False)
        ax.set_xlabel(f"block {blocks[block]}", labelpad=2)
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    draw_strip_bar(place, image)
    part.suptitle(line.title, x=0.01, ha="left", fontsize=6.5)
