"""Where a mask of few true values holds: most of it is looked at eight values at a time."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLACES_BYTES", "places_of"]

PLACES_BYTES = 10
"""Of one value of a mask at most, beyond the mask and the result: where most are true, all are looked at one by one."""


def places_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat indices (place,) of the true values of a contiguous mask, ascending, as ``np.flatnonzero`` gives them."""
    values = mask.reshape(-1)
    whole = len(values) // 8 * 8
    eights = np.flatnonzero(values[:whole].view(np.uint64)) * 8
    near = (eights[:, np.newaxis] + np.arange(8)).reshape(-1)
    return np.concatenate([near[values[near]], whole + np.flatnonzero(values[whole:])])
