"""Curves over layers: one per image, and their mean with its spread.

The unit is the image. Where an image was shown with several prompts of one kind, its curve is first the mean over those
prompts: they share the image and are no independent samples. Band = standard deviation over images, as in the papers;
beside it the 95 % percentile interval of the mean over 1000 bootstrap samples of images.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.resampling import PERCENTILES, draw_times

__all__ = ["BOOTSTRAPS", "Band", "band", "image_curves", "ordered_kinds"]

BOOTSTRAPS = 1000
_KINDS = ("normal", "question", "noisy", "empty")


class Band(NamedTuple):
    """Mean, standard deviation over images, interval of the mean, each (layer); number of images."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    images: int


def ordered_kinds(kinds: pd.Series) -> list[str]:
    """Return the prompt kinds that occur, the built-in ones first, others in order of appearance."""
    found = list(dict.fromkeys(kinds))
    return [kind for kind in _KINDS if kind in found] + [kind for kind in found if kind not in _KINDS]


def image_curves(image_ids: pd.Series, values: NDArray[np.floating]) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Average samples of the same image.

    Parameters
    ----------
    image_ids : series (sample)
    values : array (sample, layer)
        A sample with a NaN anywhere has no curve (its text set is empty, say) and is left out.

    Returns
    -------
    images : array (image) of str
        Those that have a curve, in order of appearance.
    curves : array (image, layer), float64
    """
    whole = np.isfinite(values).all(axis=1)
    codes, images = pd.factorize(image_ids.to_numpy(dtype=object)[whole])
    curves = np.zeros((len(images), values.shape[1]))
    np.add.at(curves, codes, values[whole])
    return images, curves / np.bincount(codes, minlength=len(images))[:, np.newaxis]


def band(curves: NDArray[np.floating], *, seed: int = 0) -> Band:
    """Summarise curves (image, layer).

    The standard deviation has one degree of freedom taken off, so it is NaN for a single image; without any image all
    is NaN.
    """
    images, layers = curves.shape
    missing = np.full(layers, np.nan)
    if images == 0:
        return Band(missing, missing, missing, missing, 0)
    std = curves.std(axis=0, ddof=1) if images > 1 else missing
    blocks = draw_times(images, BOOTSTRAPS, np.random.default_rng(seed))
    means = np.concatenate([times @ curves / images for times in blocks])
    low, high = np.percentile(means, PERCENTILES, axis=0)
    return Band(curves.mean(axis=0), std, low, high, images)
