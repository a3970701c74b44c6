"""Which images a page shows: a subset that depends on the seed and the images' ids alone, and their thumbnails."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analyses.part_keys import whole_image_grid
from engine.store import Store

__all__ = ["Frame", "choose_images", "frame_of", "thumbnail_uri"]


class Frame(NamedTuple):
    """Where the patches of a sample lie on its picture.

    Attributes
    ----------
    number : int
        Place of the grid in the sample's ``grids``.
    rows, cols : int
    box : (float, float, float, float)
        Left, top, width and height of the grid, in widths and heights of the picture; beyond 0..1 where patches reach
        over the picture's edge.
    aspect : float
        Width of the picture, of its height.
    """

    number: int
    rows: int
    cols: int
    box: tuple[float, float, float, float]
    aspect: float


def choose_images(image_ids: Iterable[str], count: int, seed: int) -> list[str]:
    """Choose images; the first ten of twenty are the ten.

    Parameters
    ----------
    image_ids : iterable of str
        May repeat.
    count, seed : int

    Returns
    -------
    list of str
        In the order of SHA-256 of seed and id.
    """
    known = sorted(set(image_ids), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    return known[:count]


def frame_of(sample: Mapping[Any, Any]) -> Frame | None:
    """Find the grid that shows the whole image; None where there is none.

    Parameters
    ----------
    sample : mapping
        A row of ``Store.samples``.
    """
    grids: Sequence[Mapping[str, Any]] = sample["grids"]
    number = whole_image_grid(grids) if len(grids) else None
    if number is None:
        return None
    grid, width, height = grids[number], float(sample["width"]), float(sample["height"])
    corner = (grid["x0"] / width, grid["y0"] / height)
    size = ((grid["x1"] - grid["x0"]) / width, (grid["y1"] - grid["y0"]) / height)
    box = tuple(float(np.round(value, 5)) for value in (*corner, *size))
    return Frame(number, int(grid["rows"]), int(grid["cols"]), box, width / height)  # type: ignore[arg-type]


def thumbnail_uri(store: Store, image_id: str) -> str | None:
    """Return the stored JPEG as an address of its own; None where the store keeps no thumbnails."""
    encoded = store.thumbnail(image_id)
    return None if encoded is None else f"data:image/jpeg;base64,{base64.b64encode(encoded).decode('ascii')}"
