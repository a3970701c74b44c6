"""The patches of one image in words: the best piece of each at some layers; words of the captions stand out."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses.figure_style import NOTE, STYLE, TEXT_INCHES
from analyses.labels import short_label, store_labels
from analyses.lens_glyphs import drawable, fit, text_width
from analyses.lens_patches import ImagePieces
from analyses.logit_lens_results import StoreLens
from analyses.picture import pale

__all__ = ["draw_patches"]

_POINTS = 72
_NARROWEST = 27.0  # points of a cell: six letters
_HEIGHT = 0.5  # of a cell, of its width; with a picture cells have the shape of its patches
_SMALLEST, _LARGEST = 4.2, 6.5  # points of a letter
_SHADES = LinearSegmentedColormap.from_list("logits", ["#FFFFFF", "#9CC9E8"])
_MATCH = "#F5C15B"
_NOTE = (
    "The best piece of every {what}; a hyphen in front: goes on with a word. Blue: its logit, from the least to the\n"
    "greatest of the layer (in brackets). Orange: a word of any of its captions."
)


def draw_patches(results: Sequence[StoreLens], images: Sequence[ImagePieces | None]) -> Figure:
    """Draw one image, a panel per layer, store after store.

    Parameters
    ----------
    results : sequence of StoreLens
    images : per store, what `lens_patches.image_pieces` gives
        At least one is not None. What the patches cover is drawn beneath the words where it is known.
    """
    labels = store_labels([item.identity for item in results])
    shown = [(item, image) for item, image in zip(results, images, strict=True) if image is not None]
    heights = [_height(image) + 0.2 for _, image in shown]
    placed = all(image.placed for _, image in shown)
    note = _NOTE.format(what="patch" if placed else "image token, in the order of the sequence")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(TEXT_INCHES, sum(heights) + 0.4), layout="constrained")
        parts = figure.subfigures(len(shown), 1, height_ratios=heights, squeeze=False).ravel()
        for part, (item, image) in zip(parts, shown, strict=True):
            store = f"{short_label(labels[item.identity.store])}, " if len(results) > 1 else ""
            name = short_label(drawable(f"{store}image {image.image_id}"), 60)
            caption = f": {fit(drawable(image.caption), 90)}" if image.caption else ""
            part.suptitle(f"{name}{caption}", x=0.01, ha="left", fontsize=7, parse_math=False)
            columns = _columns(image)
            axes = part.subplots(-(-len(image.layers) // columns), columns, squeeze=False).ravel()
            for number, ax in enumerate(axes):
                if number < len(image.layers):
                    _draw_layer(ax, image, number)
                else:
                    ax.set_axis_off()
        figure.supxlabel(note, **NOTE)
    return figure


def _columns(image: ImagePieces) -> int:
    """Panels side by side, so that cells stay wide enough for words."""
    fitting = int(TEXT_INCHES * _POINTS / (image.shape[1] * _NARROWEST))
    return max(1, min(fitting, 3, len(image.layers)))


def _cell(image: ImagePieces) -> float:
    """Width of a cell in points."""
    return (TEXT_INCHES * _POINTS / _columns(image) - 8) / image.shape[1]


def _height(image: ImagePieces) -> float:
    """Inches of all panels of an image."""
    rows = -(-len(image.layers) // _columns(image))
    panel = _cell(image) * image.shape[0] * _aspect(image) / _POINTS
    return rows * (panel + 0.2)


def _aspect(image: ImagePieces) -> float:
    """Height of a cell, of its width."""
    if image.picture is None:
        return _HEIGHT
    return image.picture.shape[0] / image.picture.shape[1] * image.shape[1] / image.shape[0]


def _draw_layer(ax: Axes, image: ImagePieces, number: int) -> None:
    rows, columns = image.shape
    logits = image.logit[number]
    low, high = float(logits.min()), float(logits.max())
    strength = (logits - low) / (high - low) if high > low else np.zeros_like(logits)
    if image.picture is not None:
        ax.imshow(pale(image.picture), extent=(0, columns, rows, 0), interpolation="bilinear")
    solid = 1.0 if image.picture is None else 0.6
    for row, col, text, share, match in zip(
        image.row, image.col, image.text[number], strength, image.matches[number], strict=True
    ):
        colour = _MATCH if match else _SHADES(share)
        ax.add_patch(Rectangle((col, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.4, alpha=solid))
        ax.text(col + 0.5, row + 0.5, **_word(drawable(text), _cell(image), bold=bool(match)))
    ax.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    ax.set_aspect(_aspect(image))
    ax.spines[:].set_visible(False)
    ax.set_title(f"layer {image.layers[number]} ({low:.3g} to {high:.3g})", loc="left", pad=2, fontsize=6.5)


def _word(text: str, width: float, *, bold: bool) -> dict[str, Any]:
    """How a word is written into a cell of so many points: smaller where it is long, cut where that is too small."""
    weight, space = "bold" if bold else "normal", 0.92 * width
    longest = next(
        most for most in range(len(text), -1, -1) if text_width(fit(text, most), weight) * _SMALLEST <= space
    )
    word = fit(text, longest)
    size = min(_LARGEST, space / max(text_width(word, weight), 1e-3))
    return {
        "s": word,
        "fontsize": size,
        "fontweight": weight,
        "ha": "center",
        "va": "center_baseline",
        "parse_math": False,
    }
