"""How every figure looks: the width of a paper's column, and colours that do not depend on telling red from green.

Colours are Okabe and Ito's. Figures are made without pyplot, so threads and notebooks do not meet in its global state.
"""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLUMN_INCHES", "NOTE", "PAIR_COLOURS", "PAIR_NAMES", "STYLE", "layer_axis", "panels"]

COLUMN_INCHES = 3.5

NOTE: Any = {"fontsize": 6, "color": "0.35", "linespacing": 1.3}

PAIR_COLOURS = {"image-text": "#0072B2", "image-image": "#D55E00", "text-text": "#009E73"}
PAIR_NAMES = {"image-text": "image–text", "image-image": "image–image", "text-text": "text–text"}

# Matplotlib types the keys of its settings one by one; a plain dict would have to be cast at every use.
STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": True,
    "hatch.linewidth": 0.4,
    "hatch.color": "0.75",
}


def panels(heights: list[float], extra: float) -> tuple[Figure, list[Axes]]:
    """Make one column of panels.

    Parameters
    ----------
    heights : list of float
        Inches of each panel.
    extra : float
        Inches beside them, for a legend or a note.

    Returns
    -------
    Figure, list of Axes
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, sum(heights) + extra), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=False, squeeze=False, height_ratios=heights)
    return figure, list(axes[:, 0])


def layer_axis(axes: Axes, first: int, last: int) -> None:
    """Give the horizontal axis whole layer numbers, with a little air at both ends."""
    margin = 0.02 * max(1, last - first)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.set_xlabel("layer")
