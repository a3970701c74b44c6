"""The image of a sample beneath what is drawn on its patches: the store's thumbnail, in pixels of the upright image."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage, imread
from numpy.typing import NDArray

from engine.errors import UsageError
from engine.store import Store

__all__ = ["Picture", "choose_sample", "read_picture", "refuse_unknown", "show_on_grid", "show_picture"]

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


def choose_sample(store: Store, image: str) -> Mapping[Any, Any] | None:
    """Choose the first sample of an image, or of the store where ``image`` is empty; None where it has no such image.

    Returns
    -------
    mapping
        A row of ``store.samples``.
    """
    rows = store.samples if not image else store.samples[store.samples["image_id"] == image]
    return None if rows.empty else rows.iloc[0].to_dict()


def refuse_unknown(image: str, stores: list[Store]) -> None:
    """Refuse an image that none of the stores has a sample of.

    Raises
    ------
    UsageError
        There is no such image.
    """
    if image and all(choose_sample(store, image) is None for store in stores):
        known = list(dict.fromkeys(stores[0].samples["image_id"]))
        raise UsageError(
            f"--image {image!r} is no image of the given stores; {stores[0].url} has {len(known)}, the first is "
            f"{known[0]!r}"
        )


def read_picture(store: Store, row: Mapping[Any, Any]) -> Picture:
    """Read the picture of a row of ``store.samples``."""
    encoded = store.thumbnail(row["image_id"])
    pixels = None if encoded is None else np.asarray(imread(BytesIO(encoded), format="jpeg"))
    return Picture(pixels, int(row["width"]), int(row["height"]))


def show_picture(ax: Axes, picture: Picture, *, pale: bool) -> None:
    """Draw the picture, and set the axes to its pixels.

    Parameters
    ----------
    ax : Axes
    picture : Picture
    pale : bool
        Pale and grey, for something to be drawn over it.
    """
    if picture.pixels is not None:
        pixels = picture.pixels / 255
        if pale:
            pixels = (1 - _PALE * (1 - pixels.mean(axis=-1, keepdims=True))).repeat(3, axis=-1)
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
