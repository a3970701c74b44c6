"""The patches of one image in words: the best piece of each at some layers; words of the captions stand out.

Words are written as large as any other text, so a cell has a least width. Grids with more columns than fit are cut into
strips, and what does not fit one figure goes on in the next.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from analyses.figure_style import COLUMN_INCHES, NOTE, STYLE, wrap_notes
from analyses.labels import short_label, store_labels
from analyses.lens_glyphs import drawable, fit, text_width
from analyses.lens_patches import ImagePieces
from analyses.logit_lens_results import StoreLens
from analyses.picture import pale

__all__ = ["draw_patches"]

_POINTS = 72
_NARROWEST, _LOWEST, _HIGHEST = 19.0, 8.5, 20.0  # points of a cell: five letters, a line, two lines
_HEIGHT = 0.5  # of a cell, of its width
_LETTER = 6.0  # points
_PAGE, _HEAD, _TITLE, _FOOT = 3.7, 0.16, 0.15, 0.38  # inches: panels of a page, its head, a panel's title, the note
_TITLE_LETTERS = 58
_SHADES = LinearSegmentedColormap.from_list("logits", ["#FFFFFF", "#9CC9E8"])
_MATCH = "#F5C15B"
_NOTE = (
    "The best piece of every {what}; a hyphen in front: goes on with a word, … behind: goes on. Blue: its logit, from "
    "the least to the greatest of the layer (in brackets). Orange: a word of any of its captions."
)
_BENEATH = "The picture beneath is drawn as wide as its patches."


class _Strip(NamedTuple):
    """Some columns of the patches of one layer: a panel."""

    item: StoreLens
    image: ImagePieces
    number: int
    first: int
    stop: int

    @property
    def cell(self) -> float:
        """Width of a cell in points; all strips of a grid have the same."""
        return (COLUMN_INCHES * _POINTS - 8) / _strip_columns(self.image)

    @property
    def inches(self) -> float:
        return min(_HIGHEST, max(_LOWEST, self.cell * _HEIGHT)) * self.image.shape[0] / _POINTS + _TITLE


def draw_patches(results: Sequence[StoreLens], images: Sequence[ImagePieces | None]) -> list[Figure]:
    """Draw one image, layer after layer, store after store, on as many figures as it takes.

    Parameters
    ----------
    results : sequence of StoreLens
    images : per store, what `lens_patches.image_pieces` gives
        None are not drawn. What the patches cover is drawn beneath the words where it is known.
    """
    labels = store_labels([item.identity for item in results])
    shown = [(item, image) for item, image in zip(results, images, strict=True) if image is not None]
    pages = [page for item, image in shown for page in _pages(item, image)]
    with mpl.rc_context(STYLE):
        return [_draw_page(page, labels, number, len(pages)) for number, page in enumerate(pages, 1)]


def _strip_columns(image: ImagePieces) -> int:
    """Columns of a strip: as many as fit, spread evenly."""
    columns = image.shape[1]
    strips = -(-columns // int(COLUMN_INCHES * _POINTS / _NARROWEST))
    return -(-columns // strips)


def _pages(item: StoreLens, image: ImagePieces) -> Iterator[list[_Strip]]:
    """Fill figures with the strips of one image; a strip that is higher than a figure has its own."""
    step = _strip_columns(image)
    page: list[_Strip] = []
    for number in range(len(image.layers)):
        for first in range(0, image.shape[1], step):
            strip = _Strip(item, image, number, first, min(first + step, image.shape[1]))
            if page and sum(one.inches for one in page) + strip.inches > _PAGE:
                yield page
                page = []
            page.append(strip)
    yield page


def _draw_page(page: Sequence[_Strip], labels: dict[str, str], number: int, pages: int) -> Figure:
    item, image = page[0].item, page[0].image
    what = "patch" if image.placed else "image token, in the order of the sequence"
    note = wrap_notes([_NOTE.format(what=what), *([] if image.picture is None else [_BENEATH])])
    name = f"{short_label(labels[item.identity.store])}\n" if len(labels) > 1 else ""
    of_pages = f" ({number} of {pages})" if pages > 1 else ""
    caption = f": {drawable(image.caption)}" if image.caption else ""
    title = name + fit(f"image {short_label(drawable(image.image_id), 20)}{of_pages}{caption}", _TITLE_LETTERS)
    heights = [strip.inches for strip in page]
    height = sum(heights) + _HEAD * (1 + bool(name)) + _FOOT + 0.1 * note.count("\n")
    figure = Figure(figsize=(COLUMN_INCHES, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=6.5, parse_math=False)
    axes = figure.subplots(len(page), 1, height_ratios=heights, squeeze=False).ravel()
    for ax, strip in zip(axes, page, strict=True):
        _draw_strip(ax, strip)
    figure.supxlabel(note, **NOTE)
    return figure


def _draw_strip(ax: Axes, strip: _Strip) -> None:
    image = strip.image
    rows, columns = image.shape
    logits = image.logit[strip.number]
    low, high = float(logits.min()), float(logits.max())
    strength: NDArray[np.floating] = (logits - low) / (high - low) if high > low else np.zeros_like(logits)
    if image.picture is not None:
        ax.imshow(pale(image.picture), extent=(0, columns, rows, 0), interpolation="bilinear", aspect="auto")
    solid = 1.0 if image.picture is None else 0.6
    for token in np.flatnonzero((image.col >= strip.first) & (image.col < strip.stop)).tolist():
        match, at = bool(image.matches[strip.number, token]), (image.col[token], image.row[token])
        colour = _MATCH if match else _SHADES(strength[token])
        ax.add_patch(Rectangle(at, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.4, alpha=solid))
        word = drawable(image.text[strip.number, token])
        ax.text(at[0] + 0.5, at[1] + 0.5, **_word(word, strip.cell, bold=match))
    ax.set(xlim=(strip.first, strip.first + _strip_columns(image)), ylim=(rows, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    part = "" if strip.stop - strip.first == columns else f", columns {strip.first + 1}–{strip.stop} of {columns}"
    title = f"layer {image.layers[strip.number]} ({low:.3g} to {high:.3g}){part}"
    ax.set_title(title, loc="left", pad=2, fontsize=6.5)


def _word(text: str, width: float, *, bold: bool) -> dict[str, Any]:
    """How a word is written into a cell of so many points: cut where it is too long."""
    weight, space = "bold" if bold else "normal", 0.92 * width / _LETTER
    longest = next(most for most in range(len(text), -1, -1) if text_width(fit(text, most), weight) <= space)
    return {
        "s": fit(text, longest),
        "fontsize": _LETTER,
        "fontweight": weight,
        "ha": "center",
        "va": "center_baseline",
        "parse_math": False,
    }
