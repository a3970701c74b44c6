"""Curves over layers: one per image, and their mean with its spread.

The unit is the image. Where an image was shown with several prompts of one group, its curve is first the mean over
those prompts: they share the image and are no independent samples. Band = standard deviation over images, as in the
papers; beside it the 95 % percentile interval of the mean over bootstrap samples of items.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.resampling import PERCENTILES, draw_times, sum_items, weighted_means

__all__ = ["BOOTSTRAPS", "Band", "ImageCurves", "band", "image_curves"]

BOOTSTRAPS = 1000


class ImageCurves(NamedTuple):
    """Curves (image, layer) float64, with each image's id and the item that it is resampled with, (image) of str."""

    curves: NDArray[np.float64]
    images: NDArray[np.object_]
    items: NDArray[np.object_]


class Band(NamedTuple):
    """Mean, standard deviation over images, interval of the mean, each (layer); numbers of images and of items."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    images: int
    items: int


def image_curves(samples: pd.DataFrame, values: NDArray[np.floating]) -> ImageCurves:
    """Average samples of the same image.

    Parameters
    ----------
    samples : DataFrame (sample)
        With the columns image_id and item_id.
    values : array (sample, layer)
        A sample with a NaN anywhere has no curve (its text set is empty, say) and is left out.

    Returns
    -------
    ImageCurves
        Of the images that have a curve, in order of appearance.
    """
    whole = np.isfinite(values).all(axis=1)
    codes, images = pd.factorize(samples["image_id"].to_numpy(dtype=object)[whole])
    curves = np.zeros((len(images), values.shape[1]))
    np.add.at(curves, codes, values[whole])
    items = np.empty(len(images), object)
    items[codes] = samples["item_id"].to_numpy(dtype=object)[whole]
    return ImageCurves(curves / np.bincount(codes, minlength=len(images))[:, np.newaxis], images, items)


def band(
    curves: NDArray[np.floating],
    items: NDArray[np.object_] | None = None,
    *,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> Band:
    """Summarise curves (image, layer), whose interval draws items (image); None where each image is its own.

    The standard deviation has one degree of freedom taken off, so it is NaN for a single image; so is the interval of a
    single item, whose every resample is the same. Without any image all is NaN.
    """
    images, layers = curves.shape
    missing = np.full(layers, np.nan)
    if images == 0:
        return Band(missing, missing, missing, missing, 0, 0)
    std = curves.std(axis=0, ddof=1) if images > 1 else missing
    clusters = sum_items(curves, items)
    if len(clusters.sizes) == 1:
        return Band(curves.mean(axis=0), std, missing, missing, images, 1)
    blocks = draw_times(len(clusters.sizes), bootstraps, np.random.default_rng(seed))
    means = np.concatenate([weighted_means(times, clusters) for times in blocks])
    low, high = np.percentile(means, PERCENTILES, axis=0)
    return Band(curves.mean(axis=0), std, low, high, images, len(clusters.sizes))
