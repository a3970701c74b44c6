"""How every figure looks: as wide as a paper's column, no letter smaller than 6 points.

Colours are Okabe and Ito's, which do not depend on telling red from green. Figures are made without pyplot, so threads
and notebooks do not meet in its global state.
"""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = [
    "ADJUSTMENT_NOTES",
    "BAND_NOTE",
    "COLUMN_INCHES",
    "COSINE_NAMES",
    "NOTE",
    "PAIR_COLOURS",
    "PAIR_NAMES",
    "STYLE",
    "LayerAxis",
    "common_axis",
    "layer_axis",
    "panel_grid",
    "share_vertical",
    "wrap_notes",
]

COLUMN_INCHES = 3.3

_NOTE_LETTERS = 70  # of a line of notes

NOTE: Any = {"fontsize": 6, "color": "0.35", "linespacing": 1.3}

PAIR_COLOURS = {"image-text": "#0072B2", "image-image": "#D55E00", "text-text": "#009E73"}
PAIR_NAMES = {"image-text": "image–text", "image-image": "image–image", "text-text": "text–text"}

COSINE_NAMES = {
    "none": "mean cosine similarity",
    "anisotropy": "cosine similarity above that of unrelated tokens",
    "mean-centred": "mean cosine similarity of centred states",
}
BAND_NOTE = "Line and band: mean and standard deviation over images."

ADJUSTMENT_NOTES = {
    "anisotropy": "Subtracted: mean cosine of tokens of different images.",
    "mean-centred": "States less the layer's mean state.",
}

# Matplotlib types the keys of its settings one by one; a plain dict would have to be cast at every use.
STYLE: Any = {
    "font.size": 6.5,
    "axes.titlesize": 6.5,
    "axes.labelsize": 6.5,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.4,
    "hatch.color": "0.75",
}


def wrap_notes(notes: Sequence[str]) -> str:
    """Break notes into lines that fit a figure, each note on lines of its own."""
    return "\n".join(line for note in notes for line in wrap(note.replace("\n", " "), _NOTE_LETTERS))


def share_vertical(axes: Sequence[Axes]) -> None:
    """Give panels of all pages one vertical axis, with a little air at both ends; an empty one has no say in it."""
    drawn = [ax.dataLim for ax in axes if np.isfinite(ax.dataLim.extents).all()]
    low, high = min((own.y0 for own in drawn), default=0.0), max((own.y1 for own in drawn), default=1.0)
    margin = 0.05 * (high - low or 1)
    for ax in axes:
        ax.set_ylim(low - margin, high + margin)


def panel_grid(count: int, columns: int, height: float, extra: float) -> tuple[Figure, list[Axes]]:
    """Make panels on shared axes, row after row.

    Parameters
    ----------
    count, columns : int
    height : float
        Inches of each row.
    extra : float
        Inches beside them, for a legend or a note.

    Returns
    -------
    Figure, list of Axes
    """
    rows = -(-count // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, rows * height + extra), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for unused in axes[count:]:
            unused.remove()
        for number, ax in enumerate(axes[:count]):
            ax.tick_params(labelbottom=number + columns >= count, labelleft=number % columns == 0)
    return figure, list(axes[:count])


class LayerAxis(NamedTuple):
    """A horizontal axis of layer numbers, or of depths, layer / blocks.

    Attributes
    ----------
    relative : bool
    first, last : float
        In layers or depths.
    word : str
        ``layer``, or ``block`` where points are the blocks themselves.
    """

    relative: bool
    first: float
    last: float
    word: str = "layer"

    def at(self, layers: NDArray[np.integer], blocks: int) -> NDArray[np.floating] | NDArray[np.integer]:
        """Return where the layers of a model of so many blocks lie."""
        return layers / blocks if self.relative else layers

    @property
    def label(self) -> str:
        """What the axis shows."""
        return f"depth ({self.word} / blocks)" if self.relative else self.word

    def set_on(self, axes: Axes, *, labelled: bool) -> None:
        """Set limits, ticks and, where asked for, the label."""
        if self.relative:
            axes.set_xlim(self.first - 0.02, self.last + 0.02)
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=5))
        else:
            layer_axis(axes, int(self.first), int(self.last))
        axes.set_xlabel(self.label if labelled else "")


def common_axis(models: Sequence[tuple[NDArray[np.integer], int]], word: str = "layer") -> LayerAxis:
    """Choose the axis that all models, (stored layers, blocks), fit on: layers where they have as many blocks."""
    axis = LayerAxis(len({blocks for _, blocks in models}) > 1, 0, 0, word)
    places = [axis.at(layers, blocks) for layers, blocks in models]
    return axis._replace(first=min(own[0] for own in places), last=max(own[-1] for own in places))


def layer_axis(axes: Axes, first: int, last: int) -> None:
    """Give the horizontal axis whole layer numbers, with a little air at both ends."""
    margin = 0.02 * max(1, last - first)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.set_xlabel("layer")
