"""Words of single images for the explorer: the best pieces of every patch and layer, as `logit-lens` tabled them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analyses.lens_patches import read_pieces
from analyses.part_task import open_array
from analyses.report.packing import numbers
from analyses.report.pictures import Frame, frame_of
from engine.store import Store

__all__ = ["read_words", "words_of_sample"]

_COLUMNS = ("sample_id", "layer", "position", "rank", "token_id", "logit")
_PER_ROW = 8  # tokens without places, such as those of a Q-Former


def read_words(table: Path, store: str, sample_ids: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Read some samples of ``logit-lens-words.parquet``, row group by row group, however large it is.

    A row group holds few samples and their names once, so most are passed over by their names alone.

    Parameters
    ----------
    table : Path
    store : str
        As the results name it.
    sample_ids : sequence of str

    Returns
    -------
    dict
        Per sample that has rows, in the order asked: layer, position, rank, token_id, logit, sorted by the first three.
    """
    wanted = pa.array(sample_ids, pa.string())
    found: dict[str, list[pd.DataFrame]] = {}
    with pq.ParquetFile(table) as file:
        for number in range(file.num_row_groups):
            keys = file.read_row_group(number, columns=["store", "sample_id"])
            if not _names(keys["store"], pa.array([store])) or not _names(keys["sample_id"], wanted):
                continue
            rows = file.read_row_group(number, columns=["store", *_COLUMNS])
            own = pc.and_(_is_in(rows["store"], pa.array([store])), _is_in(rows["sample_id"], wanted))
            frame = rows.select(_COLUMNS).filter(own).to_pandas()
            for name, of_sample in frame.groupby(frame["sample_id"].astype(str)):
                found.setdefault(str(name), []).append(of_sample)
    return {
        name: pd.concat(found[name]).sort_values(["layer", "position", "rank"]) for name in sample_ids if name in found
    }


def _names(column: pa.ChunkedArray, wanted: pa.Array) -> bool:
    """Whether a column has one of the names, by its dictionaries."""
    return any(pc.any(pc.is_in(chunk.dictionary, wanted)).as_py() for chunk in column.chunks)


def _is_in(column: pa.ChunkedArray, wanted: pa.Array) -> pa.ChunkedArray:
    return pc.is_in(column.cast(pa.string()), wanted)


def words_of_sample(store: Store, sample: pd.Series, rows: pd.DataFrame) -> dict[str, Any] | None:
    """Lay the words of one sample out for the explorer.

    Parameters
    ----------
    store : Store
    sample : Series
        A row of ``store.samples``.
    rows : DataFrame
        Of `read_words`.

    Returns
    -------
    dict or None
        ``layers``; ``rows``, ``cols``, ``cells`` (row and column of every token), ``placed``, ``box`` and ``aspect`` of
        the grid; ``pieces`` and ``matches`` (whether one of the piece's words is a word of the captions); ``ids``
        [layer][token][rank], places in ``pieces``, and ``logits`` likewise. None where no grid shows the whole image.
    """
    layers, positions = (np.unique(rows[name].to_numpy()) for name in ("layer", "position"))
    shape = (len(layers), len(positions), int(rows["rank"].max()))
    token_id, logit = (rows[name].to_numpy().reshape(shape) for name in ("token_id", "logit"))
    placed = len(sample["grids"]) > 0
    frame = frame_of(sample)
    if placed and frame is None:
        return None
    on, cells = _cells(store, sample, positions, frame)
    token_id, logit = token_id[:, on], logit[:, on]
    used, ids = np.unique(token_id, return_inverse=True)
    captions = [] if sample["references"] is None else list(sample["references"])
    pieces, matches = read_pieces(store.model.vocabulary, used.astype(np.int32), captions)
    return {
        "captions": captions,
        "layers": layers.tolist(),
        "placed": placed,
        "rows": int(cells[:, 0].max()) + 1 if frame is None else frame.rows,
        "cols": min(_PER_ROW, len(cells)) if frame is None else frame.cols,
        "box": [0, 0, 1, 1] if frame is None else list(frame.box),
        "aspect": 1 if frame is None else frame.aspect,
        "cells": cells.tolist(),
        "pieces": pieces.tolist(),
        "matches": matches.astype(int).tolist(),
        "ids": ids.reshape(token_id.shape).tolist(),
        "logits": [[numbers(token) for token in layer] for layer in logit],
    }


def _cells(
    store: Store, sample: pd.Series, positions: NDArray[np.int32], frame: Frame | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the tokens are shown, and their rows and columns (token, 2)."""
    if frame is None:
        order = np.arange(len(positions))
        return order, np.stack(np.divmod(order, _PER_ROW), axis=1)
    part = next(part for part in store.parts if (part.url, part.number) == (sample["store"], sample["part"]))
    runs = [slice(segment["start"], segment["stop"]) for segment in sample["segments"]]
    position, grid, row, col = (
        np.concatenate([np.asarray(open_array(part, f"token/{name}")[run], np.int64) for run in runs])
        for name in ("position", "grid", "patch_row", "patch_col")
    )
    own = np.searchsorted(position, positions)  # a sample's tokens are in the order of its sequence
    on = np.flatnonzero(grid[own] == frame.number)
    return on, np.stack([row[own[on]], col[own[on]]], axis=1)
