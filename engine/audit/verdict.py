"""The rule: which deviations are kernel noise, and which vector of a tensor is worst.

Two passes over one sample differ, so the floor of a layer is measured: the largest difference of a fresh pass from two
others, one under a different attention kernel and one in a padded batch, over all vectors of the audited samples in the
layer and those next to it. All three choices keep one sample from giving too small a floor: a kernel alone changes
nothing before the language model, where batches do (in the vision tower, in a Q-Former); in a single layer passes may
agree by chance where those of the store did not; and over all layers the noise of the last would hide errors of the
first. A stored vector is right when its difference is at most three times that floor, or when it points where the
fresh one points and is as long: cosine at least 1 − 1e-4 in 16 bits, 1 − 1e-6 in float32, and a length off by no more
than noise of that angle could make it. So damage is found from 1.4 % of a vector's length in 16 bits (0.14 % in
float32) and three times the floor, whichever is more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.audit.compare import Deviations

__all__ = ["FLOOR_FACTOR", "TOLERANCES", "Worst", "find_worst"]

FLOOR_FACTOR = 3.0

TOLERANCES = {"float16": 1e-4, "bfloat16": 1e-4, "float32": 1e-6}
"""Of 1 − cosine, by the dtype that values were captured in."""


@dataclass(frozen=True)
class Worst:
    """The vector of a tensor that is farthest beyond the bound, or nearest to it.

    Attributes
    ----------
    severity
        1 at the bound; a tensor passes up to there.
    sample
        Which of the audited samples.
    index
        Place of the vector in that sample's tensor (leading index first).
    at
        The component that differs most.
    difference, bound
        Largest difference and three times the floor, per length of the vector.
    angle
        1 − cosine.
    stretch
        How far the ratio of lengths is from 1.
    """

    severity: float
    sample: int
    index: tuple[int, ...]
    at: int
    difference: float
    bound: float
    angle: float
    stretch: float

    @property
    def passed(self) -> bool:
        """Whether the tensor keeps the rule."""
        return self.severity <= 1


def find_worst(samples: Sequence[Deviations], tolerance: float) -> Worst | None:
    """Judge one tensor.

    Parameters
    ----------
    samples
        Per audited sample its deviations, (slab, ...): slabs are layers or blocks.
    tolerance
        Of 1 − cosine.

    Returns
    -------
    Worst or None
        None where there is no vector at all.
    """
    counted = [(number, deviations) for number, deviations in enumerate(samples) if deviations.difference.size]
    if not counted:
        return None
    slabs = len(counted[0][1].floor)
    floors = np.max([entry.floor.reshape(slabs, -1).max(axis=1) for _, entry in counted], axis=0).astype(np.float64)
    edged = np.pad(floors, 1)
    bounds = FLOOR_FACTOR * np.maximum.reduce([edged[:-2], floors, edged[2:]])
    found = [_worst_of(number, deviations, bounds, tolerance) for number, deviations in counted]
    return max(found, key=lambda worst: worst.severity)


def _worst_of(number: int, deviations: Deviations, bounds: np.ndarray, tolerance: float) -> Worst:
    bound = bounds.reshape(-1, *(1,) * (deviations.difference.ndim - 1))
    difference = deviations.difference.astype(np.float64)
    # Where two kernels agree to the bit nothing is noise: any difference at all is beyond that bound.
    beyond = np.full(difference.shape, np.inf)
    beyond = np.divide(difference, bound, out=beyond, where=(bound > 0) & np.isfinite(difference))
    beyond[difference == 0] = 0.0
    turned = np.maximum(deviations.angle / tolerance, deviations.stretch / math.sqrt(2 * tolerance))
    severity = np.minimum(beyond, turned)
    index = tuple(int(place) for place in np.unravel_index(int(severity.argmax()), severity.shape))
    return Worst(
        severity=float(severity[index]),
        sample=number,
        index=index,
        at=int(deviations.at[index]),
        difference=float(difference[index]),
        bound=float(bounds[index[0]]),
        angle=float(deviations.angle[index]),
        stretch=float(deviations.stretch[index]),
    )
