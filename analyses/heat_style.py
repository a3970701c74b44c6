"""Colours of heat maps of shares: logarithmic, because few keys take most; grey where there is nothing."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

__all__ = ["heat_colours", "label_heat", "positive"]

_DECADES = 4


def positive(values: NDArray[np.floating]) -> np.ma.MaskedArray:
    """Mask what a logarithm cannot show, so that it is drawn grey."""
    return np.ma.masked_where(~(values > 0), values)


def heat_colours(values: Sequence[NDArray[np.floating]]) -> dict[str, Any]:
    """One scale for all: up to the largest value, down over some decades where values reach so far."""
    present = np.concatenate([own[own > 0].ravel() for own in values])
    highest = float(present.max(initial=1e-9))
    lowest = max(float(present.min(initial=highest)), highest * 10.0**-_DECADES)
    scale = mpl.colormaps["viridis"].with_extremes(bad="0.88")
    return {"cmap": scale, "norm": LogNorm(min(lowest, highest / 2), highest), "rasterized": True}


def label_heat(bar: Colorbar, count: int) -> None:
    """Label the ends and what lies between; a scale of less than two decades has no powers of ten to label."""
    low, high = bar.norm.vmin, bar.norm.vmax
    assert low is not None
    assert high is not None
    ticks = np.geomspace(low, high, count).tolist()
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()
