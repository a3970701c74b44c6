"""Bootstrap samples of images, drawn in blocks so that memory follows neither their number nor the images'."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "block_bytes", "draw_times", "resample_means"]

PERCENTILES = (2.5, 97.5)
"""Ends of a 95 % percentile interval."""

_VALUES_AT_ONCE = 2**20
_BYTES_PER_VALUE = 8 + 8 + 1 + 8  # times drawn, as float, whether left out, as float


def draw_times(images: int, bootstraps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn, block after block of (bootstrap, image).

    The draws do not depend on the size of the blocks.
    """
    at_once = max(1, _VALUES_AT_ONCE // images)
    chances = np.full(images, 1.0 / images)
    for start in range(0, bootstraps, at_once):
        yield rng.multinomial(images, chances, size=min(at_once, bootstraps - start))


def resample_means(
    curves: NDArray[np.float64], bootstraps: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average curves (image, layer) over the images drawn, and over those left out.

    Returns
    -------
    drawn, left_out : arrays (bootstrap, layer), float64
        ``left_out`` is NaN where every image was drawn.
    """
    images = len(curves)
    drawn, left_out = (np.full((bootstraps, curves.shape[1]), np.nan) for _ in range(2))
    start = 0
    for times in draw_times(images, bootstraps, rng):
        rows = slice(start, start := start + len(times))
        drawn[rows] = times @ curves / images
        unused = times == 0
        some = unused.sum(axis=1, keepdims=True)
        np.divide(unused @ curves, some, out=left_out[rows], where=some > 0)
    return drawn, left_out


def block_bytes(images: int, bootstraps: int) -> int:
    """Bytes that one block of draws needs at most."""
    return _BYTES_PER_VALUE * max(images, min(_VALUES_AT_ONCE, images * bootstraps))
