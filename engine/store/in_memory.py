"""One layer of hidden states of all parts in memory, every chunk decoded to where it belongs.

Dask holds what its tasks have read until the whole is put together, which takes the memory of two layers, and the time
that the second one's pages and copy take.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine.cores import usable_cores
from engine.store.layout import ArrayShape
from engine.store.part import Part

__all__ = ["read_layer"]

_WINDOW_BYTES = 2**25
"""Of what one thread reads at a time: more than a chunk, because each window opens its file anew."""


def read_layer(parts: Sequence[Part], place: int) -> np.ndarray:
    """Read one layer of hidden states.

    Parameters
    ----------
    parts
        At least one, all of which hold hidden states.
    place
        Of the layer among those that are stored.

    Returns
    -------
    np.ndarray
        (token, dim), float16 or float32 as stored, the parts' tokens one after the other.

    Raises
    ------
    StrataError
        When a file is missing or damaged.
    """
    path = "token/hidden_states"
    stored = [part.stored(path) for part in parts]
    ends = np.cumsum([array.shape[1] for array in stored]).tolist()
    values = np.empty((ends[-1], stored[0].shape[2]), stored[0].dtype)
    windows = []
    for part, array, end in zip(parts, stored, ends, strict=True):
        tokens = array.shape[1]
        entry = part.manifest["arrays"][path]
        chunk = ArrayShape(path, tuple(entry["dims"]), array.shape, entry["dtype"]).chunk_plan.inner
        step = chunk[1] * max(1, _WINDOW_BYTES // (math.prod(chunk) * array.dtype.itemsize))
        own = values[end - tokens : end]
        windows += [(array, start, own[None, start : start + step]) for start in range(0, tokens, step)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in pool.map(lambda window: window[0].fill((place, window[1], 0), window[2]), windows):
            pass
    return values
