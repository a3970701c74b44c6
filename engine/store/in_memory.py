"""One layer of hidden states of all parts in memory, every chunk decoded to where it belongs.

Dask holds what its tasks have read until the whole is put together, which takes the memory of two layers, and the time
that the second one's pages and copy take.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine.cores import usable_cores
from engine.errors import StrataError
from engine.store.layout import ArrayShape
from engine.store.part import Part

__all__ = ["read_leading"]

_WINDOW_BYTES = 2**25
"""Most that one thread reads at a time: more than a chunk, because each window opens its file anew."""


def read_leading(parts: Sequence[Part], path: str, place: int) -> np.ndarray:
    """Read one layer of an array of tokens, or one block.

    Parameters
    ----------
    parts
        Those that hold the array are read; there is one.
    path
        Group and name: ``token/hidden_states``.
    place
        Of the layer along the leading axis.

    Returns
    -------
    np.ndarray
        (token, dim), of the stored dtype, the parts' tokens one after the other.

    Raises
    ------
    StrataError
        When a file is missing or damaged, or parts differ in dtype.
    """
    holding = [part for part in parts if path in part.manifest["arrays"]]
    stored = [part.stored(path) for part in holding]
    if len(dtypes := {str(array.dtype) for array in stored}) > 1:
        raise StrataError(
            f"parts of {parts[0].url} hold {path} as {' and '.join(sorted(dtypes))}, but a store has one dtype: a "
            "manifest was changed; delete that part's manifest, and strata extract does it again"
        )
    ends = np.cumsum([array.shape[1] for array in stored]).tolist()
    values = np.empty((ends[-1], stored[0].shape[2]), stored[0].dtype)
    local = all(array.location.is_local for array in stored)
    # Of files far away zarr makes copies of what it reads, and many are waited for at once: hence single chunks.
    most = min(_WINDOW_BYTES, values.nbytes // (2 * usable_cores())) if local else 1
    windows = []
    for part, array, end in zip(holding, stored, ends, strict=True):
        tokens, entry = array.shape[1], part.manifest["arrays"][path]
        chunk = ArrayShape(path, tuple(entry["dims"]), array.shape, entry["dtype"]).chunk_plan.inner
        step = chunk[1] * max(1, most // (math.prod(chunk) * array.dtype.itemsize))
        own = values[end - tokens : end]
        windows += [(array, start, own[None, start : start + step]) for start in range(0, tokens, step)]
    with ThreadPoolExecutor(usable_cores() if local else None) as pool:
        for _ in pool.map(lambda window: window[0].fill((place, window[1], 0), window[2]), windows):
            pass
    return values
