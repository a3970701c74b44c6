"""Bootstrap samples of items, drawn in blocks so that memory follows neither their number nor the items'.

What is drawn with replacement are items: an item is an image, except where images come in sets that were made to be
compared (the two of a Winoground item), which are drawn together. The statistic stays the mean over the images drawn,
so an item with more images weighs more (the cluster bootstrap; Davison and Hinkley 1997, section 3.8).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.errors import UsageError

__all__ = [
    "PERCENTILES",
    "ItemSums",
    "block_bytes",
    "check_bootstraps",
    "draw_times",
    "resample_means",
    "sum_items",
    "weighted_means",
]

PERCENTILES = (2.5, 97.5)
"""Ends of a 95 % percentile interval."""

_VALUES_AT_ONCE = 2**20
_BYTES_PER_VALUE = 8 + 8 + 1 + 8  # times drawn, as float, whether left out, as float


class ItemSums(NamedTuple):
    """Curves summed over the images of each item: sums (item, layer), and sizes (item), the number of images."""

    sums: NDArray[np.float64]
    sizes: NDArray[np.int64]


def sum_items(curves: NDArray[np.floating], items: NDArray[np.object_] | None) -> ItemSums:
    """Sum curves (image, layer) over the images of each item.

    Parameters
    ----------
    curves : array (image, layer)
    items : array (image) or None
        The item of each image; None where each image is its own.
    """
    codes, names = pd.factorize(np.arange(len(curves)) if items is None else items)
    if len(names) == len(curves):
        return ItemSums(np.asarray(curves, np.float64), np.ones(len(curves), np.int64))
    sums = np.zeros((len(names), curves.shape[1]))
    np.add.at(sums, codes, curves)
    return ItemSums(sums, np.bincount(codes, minlength=len(names)))


def weighted_means(weights: NDArray[np.integer] | NDArray[np.bool_], items: ItemSums) -> NDArray[np.float64]:
    """Mean curves (row, layer) over the images of items that weigh ``weights`` (row, item); NaN where none weighs."""
    images = (weights @ items.sizes)[:, np.newaxis]
    sums = weights @ items.sums
    return np.divide(sums, images, out=np.full_like(sums, np.nan), where=images > 0)


def draw_times(items: int, bootstraps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield how often each item is drawn, block after block of (bootstrap, item).

    The draws do not depend on the size of the blocks.
    """
    at_once = max(1, _VALUES_AT_ONCE // items)
    chances = np.full(items, 1.0 / items)
    for start in range(0, bootstraps, at_once):
        yield rng.multinomial(items, chances, size=min(at_once, bootstraps - start))


def resample_means(
    items: ItemSums, bootstraps: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average curves over the images of the items drawn, and over those left out.

    Returns
    -------
    drawn, left_out : arrays (bootstrap, layer), float64
        ``left_out`` is NaN where every item was drawn.
    """
    drawn, left_out = (np.empty((bootstraps, items.sums.shape[1])) for _ in range(2))
    start = 0
    for times in draw_times(len(items.sizes), bootstraps, rng):
        rows = slice(start, start := start + len(times))
        drawn[rows] = weighted_means(times, items)
        left_out[rows] = weighted_means(times == 0, items)
    return drawn, left_out


def check_bootstraps(bootstraps: int) -> None:
    """Raise UsageError where there is nothing to take percentiles of."""
    if bootstraps < 1:
        raise UsageError(f"--bootstraps {bootstraps}: at least 1 is needed for an interval")


def block_bytes(items: int, bootstraps: int) -> int:
    """Bytes that one block of draws needs at most."""
    return _BYTES_PER_VALUE * max(items, min(_VALUES_AT_ONCE, items * bootstraps))
