"""The image of a sample beneath what is drawn on its patches: the store's thumbnail, in pixels of the upright image."""

import difflib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage, imread
from numpy.typing import NDArray

from engine.errors import UsageError
from engine.store import Store

__all__ = ["Picture", "choose_image", "crop_to_grid", "pale", "read_picture", "show_on_grid", "show_picture"]

_PALE = 0.55  # of black; the picture must not outshine what is drawn over it


class Picture(NamedTuple):
    """An image as it was seen upright.

    Attributes
    ----------
    pixels : array (row, col, 3), uint8, or None
        None where the store keeps no thumbnails.
    width, height : int
        Of the original, in pixels; thumbnails are smaller.
    """

    pixels: NDArray[np.uint8] | None
    width: int
    height: int


def choose_image(stores: Sequence[Store], image_id: str) -> str:
    """Check that a store holds the image; the first sample's where none is named.

    Raises
    ------
    UsageError
        No store holds it.
    """
    known = list(dict.fromkeys(name for store in stores for name in store.samples["image_id"]))
    if image_id and image_id not in known:
        close = difflib.get_close_matches(image_id, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "see the column image_id of Store.samples"
        raise UsageError(f"--image {image_id}: no committed sample of these stores shows it; {hint}")
    return image_id or "".join(known[:1])


def read_picture(store: Store, row: Mapping[Any, Any] | pd.Series) -> Picture:
    """Read the picture of a row of ``store.samples``."""
    encoded = store.thumbnail(row["image_id"])
    pixels = None if encoded is None else np.asarray(imread(BytesIO(encoded), format="jpeg"))
    return Picture(pixels, int(row["width"]), int(row["height"]))


def crop_to_grid(picture: Picture, grid: Mapping[str, Any]) -> NDArray[np.uint8] | None:
    """Cut out what the patches of a grid cover; white where they reach beyond the image.

    Parameters
    ----------
    picture : Picture
    grid : mapping
        An entry of the sample table's ``grids``.

    Returns
    -------
    array (row, col, 3), uint8, or None
        None without pixels.
    """
    if picture.pixels is None:
        return None
    rows, cols, _ = picture.pixels.shape
    across = np.arange(round(grid["x0"] * cols / picture.width), round(grid["x1"] * cols / picture.width))
    down = np.arange(round(grid["y0"] * rows / picture.height), round(grid["y1"] * rows / picture.height))
    cut = picture.pixels[down.clip(0, rows - 1)[:, None], across.clip(0, cols - 1)]
    cut[(down < 0) | (down >= rows)] = 255
    cut[:, (across < 0) | (across >= cols)] = 255
    return cut


def pale(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Turn pixels (row, col, 3) pale and grey, within 0..1, for something to be drawn over them."""
    grey = pixels.mean(axis=-1, keepdims=True) / 255
    return (1 - _PALE * (1 - grey)).repeat(3, axis=-1)


def show_picture(ax: Axes, picture: Picture, *, beneath: bool) -> None:
    """Draw the picture, and set the axes to its pixels.

    Parameters
    ----------
    ax : Axes
    picture : Picture
    beneath : bool
        Pale, for something to be drawn over it.
    """
    if picture.pixels is not None:
        pixels = pale(picture.pixels) if beneath else picture.pixels
        ax.imshow(pixels, extent=(0, picture.width, picture.height, 0), interpolation="bilinear")
    ax.set_xlim(0, picture.width)
    ax.set_ylim(picture.height, 0)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def show_on_grid(ax: Axes, values: Any, grid: Mapping[str, Any], **colours: Any) -> AxesImage:
    """Draw values (rows, cols) where the patches of a grid lie on the picture; the axes keep their limits.

    Parameters
    ----------
    values : array (rows, cols)
    grid : mapping
        An entry of the sample table's ``grids``: the box x0, y0, x1, y1 in pixels of the upright image.
    colours
        For ``Axes.imshow``.
    """
    limits = ax.get_xlim(), ax.get_ylim()
    extent = (grid["x0"], grid["x1"], grid["y1"], grid["y0"])
    image = ax.imshow(values, extent=extent, interpolation="nearest", **colours)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])
    return image
