"""Where the queries of one sample look on its own image: shares of attention per patch, block by block."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.attention_sums import row_shares
from analyses.attention_task import ARRAYS
from analyses.key_places import find_sinks
from analyses.part_keys import query_names, read_places, whole_image_grid
from analyses.picture import Picture, read_picture
from engine.store import Store

__all__ = ["ImageAttention", "read_image_attention", "read_sample_attention"]


class ImageAttention(NamedTuple):
    """Attention of one sample on the grid that shows its whole image.

    Attributes
    ----------
    sample_id, prompt_id : str
    picture : Picture
    grid : mapping
        Its entry of the sample table's ``grids``.
    queries : tuple of str
        Those that the sample has.
    blocks : array (block), int32
    shares : array (array, query, block, row, col), float64
        Shares of the row: of `attention_task.ARRAYS`, the weights (mean over heads) and the norms. Of all keys of the
        sample, or of those that are no sinks, whose own shares are then 0.
    """

    sample_id: str
    prompt_id: str
    picture: Picture
    grid: Mapping[str, Any]
    queries: tuple[str, ...]
    blocks: NDArray[np.int32]
    shares: NDArray[np.float64]


def read_image_attention(store: Store, image: str, *, without_sinks: bool) -> ImageAttention | None:
    """Read an image's first sample, as `read_sample_attention`; None where the store has no such image."""
    rows = store.samples[store.samples["image_id"] == image]
    return None if rows.empty else read_sample_attention(store, rows.iloc[0], without_sinks=without_sinks)


def read_sample_attention(store: Store, row: pd.Series, *, without_sinks: bool) -> ImageAttention | None:
    """Read the attention of one sample.

    Parameters
    ----------
    store : Store
    row : Series
        Of ``store.samples``.
    without_sinks : bool
        Whether position 0 and BOS are left out of the rows.

    Returns
    -------
    ImageAttention or None
        None where no grid shows the whole image, or the sample has no query.
    """
    number = whole_image_grid(row["grids"])
    if number is None:
        return None
    have = [place for place, position in enumerate(row["query_positions"]) if position >= 0]
    if not have:
        return None
    part = next(part for part in store.parts if (part.url, part.number) == (row["store"], row["part"]))
    own = slice(int(row["key_start"]), int(row["key_stop"]))
    weights, norms = (part.variable(path, "key", own).to_numpy()[:, have].astype(np.float64) for path in ARRAYS)
    places = {name: values[own] for name, values in read_places(part).items()}
    counted = np.stack([weights.mean(axis=2), norms])
    if without_sinks:
        counted[..., find_sinks(places["role"])] = 0
    shares = row_shares(counted, np.zeros(counted.shape[-1], np.int64), 1)
    patches = np.flatnonzero(places["grid"] == number)
    grid = row["grids"][number]
    on_grid = np.full((*shares.shape[:-1], int(grid["rows"]), int(grid["cols"])), np.nan)
    on_grid[..., places["patch_row"][patches], places["patch_col"][patches]] = shares[..., patches]
    return ImageAttention(
        sample_id=str(row["sample_id"]),
        prompt_id=str(row["prompt_id"]),
        picture=read_picture(store, row),
        grid=grid,
        queries=tuple(query_names(part)[place] for place in have),
        blocks=part.variable("key/block").to_numpy(),
        shares=on_grid.swapaxes(1, 2),
    )
