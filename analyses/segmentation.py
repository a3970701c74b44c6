"""Cutting a curve into alternating rises and falls: exact dynamic programming over monotone fits.

A segmentation into K stretches costs the sum of the squared errors of its isotonic and antitonic fits, signs
alternating. Two neighbours share the point at which they meet and a stretch has at least two points, both ends
included, so that a boundary is the extremum itself, even one layer before the end. Among equal costs, on a plateau,
the later boundary wins; boundaries are decided from the last one back. Costs closer than one part in 10¹² of the
curve's own variation count as equal: rounding would decide otherwise.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.monotone_costs import monotone_costs

__all__ = ["Segmentation", "fewest_layers", "segment_all", "segment_curves", "segmentation_bytes"]

_EQUAL = 1e-12
_CURVES_AT_ONCE = 256  # bounds the work space
_BYTES_PER_STRETCH = 56  # costs of both signs, stacks, candidates: measured 42 to 51


class Segmentation(NamedTuple):
    """The best cuts of several curves into the same number of segments.

    Attributes
    ----------
    last : array (curve, segment) of int
        Index of each segment's last point; the final column is the last index of the curve.
    cost : array (curve), float64
        Summed squared error; infinity where the curve is too short.
    """

    last: NDArray[np.intp]
    cost: NDArray[np.float64]


def segment_curves(curves: NDArray[np.floating], segments: int, *, first_rises: bool = True) -> Segmentation:
    """Cut every curve into ``segments`` alternating monotone stretches.

    Parameters
    ----------
    curves : array (curve, layer), finite
    segments : int
        At least 1; needs ``segments + 1`` layers.
    first_rises : bool
        Whether the first stretch is the non-decreasing one.

    Returns
    -------
    Segmentation

    Raises
    ------
    ValueError
        The curves have fewer layers than the segments need.
    """
    return segment_all(curves, segments, first_rises=first_rises)[-1]


def segment_all(curves: NDArray[np.floating], most: int, *, first_rises: bool = True) -> list[Segmentation]:
    """Cut every curve into 1, 2, … ``most`` stretches, sharing the costs; parameters as in `segment_curves`."""
    values = np.asarray(curves, np.float64)
    length = values.shape[1]
    if length < fewest_layers(most):
        raise ValueError(f"{most} segments need {fewest_layers(most)} layers, the curves have {length}")
    pieces = [
        _segment_batch(values[start : start + _CURVES_AT_ONCE], most, first_rises)
        for start in range(0, max(1, len(values)), _CURVES_AT_ONCE)
    ]
    return [
        Segmentation(np.concatenate([p[k].last for p in pieces]), np.concatenate([p[k].cost for p in pieces]))
        for k in range(most)
    ]


def fewest_layers(segments: int) -> int:
    """Layers that so many segments need: two points each, every boundary shared."""
    return segments + 1


def segmentation_bytes(layers: int) -> int:
    """Bytes of work space for curves of that many layers, however many curves there are."""
    return _BYTES_PER_STRETCH * _CURVES_AT_ONCE * layers * layers


def _segment_batch(curves: NDArray[np.float64], most: int, first_rises: bool) -> list[Segmentation]:
    count, length = curves.shape
    tolerance = _EQUAL * np.square(curves - curves.mean(axis=1, keepdims=True)).sum(axis=1)
    rising, falling = (_long_enough(monotone_costs(signed)) for signed in (curves, -curves))
    by_sign = (rising, falling) if first_rises else (falling, rising)
    best = by_sign[0][:, 0, :]  # best[c, j]: cost of points 0..j cut into k segments
    cuts: list[NDArray[np.intp]] = []  # cuts[k][c, j]: where segments k and k + 1 meet when the latter ends at j
    found = []
    for segment in range(1, most + 1):
        found.append(Segmentation(_trace(cuts, count, length), best[:, -1].copy()))
        if segment < most:
            best, cut = _extend(best, by_sign[segment % 2], tolerance)
            cuts.append(cut)
    return found


def _long_enough(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    layers = np.arange(costs.shape[1])
    costs[:, layers, layers] = np.inf
    return costs


def _extend(
    best: NDArray[np.float64], costs: NDArray[np.float64], tolerance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """One more segment: for every end j the cheapest, then latest, point i < j at which it meets those before it."""
    length = best.shape[1]
    candidates = best[:, :, None] + costs  # (curve, i, j): segments up to i, one more over i..j
    lowest = candidates.min(axis=1)
    equal = candidates <= (lowest + tolerance[:, None])[:, None, :]
    return lowest, length - 1 - np.argmax(equal[:, ::-1, :], axis=1)


def _trace(cuts: list[NDArray[np.intp]], count: int, length: int) -> NDArray[np.intp]:
    last = np.full((count, len(cuts) + 1), length - 1)
    for segment in range(len(cuts) - 1, -1, -1):
        last[:, segment] = cuts[segment][np.arange(count), last[:, segment + 1]]
    return last
