"""Phases of inference: where a curve over layers rises and falls, and how sure the images make us of it.

Pure arrays in, records out; the boundaries come from `analyses.segmentation`, the names from Wei, Shi and Inoue
(arXiv 2411.00646).

Intervals resample items (an item is an image, or images that belong together): each resample is cut, and its changes
are read, on the images drawn. They say how far the numbers would move with other images, and no more. The curve that
chose the boundaries flatters them: on noise alone it finds a "rise" between its own lowest and highest layer in nearly
every resample. So whether a phase is supported is decided by a second reading: between the boundaries of each resample,
the change of the images left out. An interval may exclude 0 and the phase still be unsupported.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.resampling import PERCENTILES, ItemSums, resample_means, sum_items, weighted_means
from analyses.segmentation import fewest_layers, segment_all, segment_curves
from engine.errors import UnfitStoreError, UsageError

__all__ = [
    "PATTERNS",
    "Detection",
    "Phase",
    "Shape",
    "check_layers",
    "choose_shape",
    "cut_each",
    "detect",
    "fixed_shape",
    "halves_bytes",
]

PATTERNS = ("four", "three", "auto")

FOUR_PHASES = ("I Alignment", "II Intra-modal Encoding", "III Inter-modal Encoding", "IV Output Preparation")
THREE_STAGES = ("I+II Early Alignment", "III Rise", "IV Decline")

_MOST_SEGMENTS = 5
_SPLITS = 50


class Shape(NamedTuple):
    """How a curve is cut: how many alternating segments, which way the first goes, how they make up phases.

    ``phases[p] = (name, first segment, last segment)``. ``scores`` is empty unless the shape was chosen by
    `choose_shape`: there ``scores[k]`` is the held-out mean squared error of ``k + 1`` segments and ``errors[k]`` the
    standard error of its distance to the best.
    """

    segments: int
    first_rises: bool
    phases: tuple[tuple[str, int, int], ...]
    scores: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()


class Phase(NamedTuple):
    """One phase of one curve; layers are the store's numbers, inclusive at both ends, intervals are 95 %.

    ``supported`` is read on images left out of each resample, not from the interval of the change.
    """

    phase: int
    name: str
    start: int
    start_low: int
    start_high: int
    end: int
    end_low: int
    end_high: int
    change: float
    change_low: float
    change_high: float
    supported: bool


class Detection(NamedTuple):
    """The phases of a mean curve, the shape they follow, and the shape that held-out images prefer."""

    shape: Shape
    phases: tuple[Phase, ...]
    preferred: Shape


def fixed_shape(pattern: str) -> Shape:
    """Return the shape of ``four`` (up, down, up, down) or ``three`` (the same cuts, the first two joined)."""
    if pattern == "four":
        return Shape(4, True, tuple((name, k, k) for k, name in enumerate(FOUR_PHASES)))
    if pattern == "three":
        return Shape(4, True, tuple(zip(THREE_STAGES, (0, 2, 3), (1, 2, 3), strict=True)))
    raise UsageError(f"--pattern {pattern}: expected one of {', '.join(PATTERNS)}")


def choose_shape(curves: NDArray[np.floating], seed: int, items: NDArray[np.object_] | None = None) -> Shape:
    """Choose the number of segments by how well the images of half of the items predict those of the other half.

    For 1 to 5 segments the mean curve of a random half of the items is fitted, the fit is scored on the mean curve of
    the other half, and the whole is repeated 50 times. The fewest segments win whose score is within one standard error
    of the best. It is the error of the difference, so that what all fits share (images lie higher or lower as a whole)
    does not blur it, and since repeats share their images it is the corrected one of Nadeau and Bengio (2003), for
    halves about the standard deviation over repeats. Which way the first segment goes is decided on the fitted half
    alone, by the lower cost, a rise on a tie; for the result, on all images.

    Parameters
    ----------
    curves : array (image, layer), finite
        With fewer than two items there is nothing to hold out and one segment is chosen.
    seed : int
    items : array (image), optional
        The item of each image; each image its own where None.
    """
    most = max((k for k in range(1, _MOST_SEGMENTS + 1) if fewest_layers(k) <= curves.shape[1]), default=1)
    scores, errors, segments = np.full(most, np.nan), np.full(most, np.nan), 1
    clusters = sum_items(curves, items)
    if len(clusters.sizes) > 1:
        held_out = _held_out_errors(clusters, most, np.random.default_rng(seed))
        scores = held_out.mean(axis=0)
        best = int(np.argmin(scores))
        errors = (held_out - held_out[:, [best]]).std(axis=0, ddof=1) * np.sqrt(1.0 + 1.0 / _SPLITS)
        segments = int(np.flatnonzero(scores <= scores[best] + errors)[0]) + 1
    mean = curves.mean(axis=0, keepdims=True)
    up, down = (segment_curves(mean, segments, first_rises=rises).cost[0] for rises in (True, False))
    first_rises = bool(up <= down)
    if (segments, first_rises) == (4, True):
        phases = fixed_shape("four").phases
    else:
        phases = tuple((("Rise", "Decline")[(k % 2 == 0) != first_rises], k, k) for k in range(segments))
    return Shape(segments, first_rises, phases, tuple(scores.tolist()), tuple(errors.tolist()))


def cut_each(
    curves: NDArray[np.floating], layers: NDArray[np.integer], shape: Shape
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boundaries of every curve by itself.

    Parameters
    ----------
    curves : array (curve, layer), finite
    layers : array (layer) of int
        The layer numbers of the curve's points.
    shape : Shape

    Returns
    -------
    start, end : arrays (curve, phase), int64
        Layer numbers, inclusive; a phase starts where the one before it ends.
    """
    _refuse_short(len(layers), shape.segments)
    start, end = _phase_points(segment_curves(curves, shape.segments, first_rises=shape.first_rises).last, shape)
    numbers = np.asarray(layers, np.int64)
    return numbers[start], numbers[end]


def detect(
    curves: NDArray[np.floating],
    layers: NDArray[np.integer],
    pattern: str,
    *,
    items: NDArray[np.object_] | None = None,
    bootstraps: int = 1000,
    seed: int = 0,
) -> Detection:
    """Find the phases of the mean curve, with bootstrap intervals over items.

    Parameters
    ----------
    curves : array (image, layer), finite, at least one image
    layers : array (layer) of int
    pattern : ``"four"``, ``"three"`` or ``"auto"``
    items : array (image), optional
        The item that each image is resampled with; each image its own where None.
    bootstraps, seed : int

    Returns
    -------
    Detection
        ``change`` is the mean curve's value at ``end`` minus that at ``start``; its interval is that of the resamples,
        each cut and read on the images drawn, NaN with fewer than two items. A phase is supported where, for every
        segment in it, the interval of the change on the images left out (see the module's text) excludes 0 with the
        segment's sign. ``preferred`` is the outcome of `choose_shape`, which ``"auto"`` follows.

    Raises
    ------
    UsageError
        An unknown pattern, or fewer layers than it needs.
    """
    values = np.asarray(curves, np.float64)
    check_layers(values.shape[1], pattern)
    preferred = choose_shape(values, seed, items)
    shape = preferred if pattern == "auto" else fixed_shape(pattern)
    mean = values.mean(axis=0, keepdims=True)
    found = segment_curves(mean, shape.segments, first_rises=shape.first_rises).last
    clusters = sum_items(values, items)
    drawn, left_out = resample_means(clusters, bootstraps, np.random.default_rng(seed))
    resampled = segment_curves(drawn, shape.segments, first_rises=shape.first_rises).last
    supported = _supported(left_out, resampled, shape.first_rises)

    start, end = _phase_points(found, shape)
    starts, ends = _phase_points(resampled, shape)
    change = (_at(mean, end) - _at(mean, start))[0]
    # One item gives the same curve in every resample: no interval, not one without width.
    changes = _at(drawn, ends) - _at(drawn, starts)
    change_low, change_high = _interval(changes if len(clusters.sizes) > 1 else np.full_like(changes, np.nan))
    numbers = np.asarray(layers, np.int64)
    (start_low, start_high), (end_low, end_high) = (
        numbers[np.percentile(points, PERCENTILES, axis=0, method="inverted_cdf").astype(np.intp)]
        for points in (starts, ends)
    )
    phases = tuple(
        Phase(
            p + 1, name,
            int(numbers[start[0, p]]), int(start_low[p]), int(start_high[p]),
            int(numbers[end[0, p]]), int(end_low[p]), int(end_high[p]),
            float(change[p]), float(change_low[p]), float(change_high[p]),
            bool(supported[first : last + 1].all()),
        )
        for p, (name, first, last) in enumerate(shape.phases)
    )  # fmt: skip
    return Detection(shape, phases, preferred)


def halves_bytes(items: int) -> int:
    """Bytes of the random halves of items that `choose_shape` compares: a flag, its opposite, and one as float."""
    return _SPLITS * items * (1 + 1 + 8)


def check_layers(points: int, pattern: str) -> None:
    """Raise UnfitStoreError where so many layers are too few, UsageError where there is no such pattern."""
    _refuse_short(points, 1 if pattern == "auto" else fixed_shape(pattern).segments)


def _refuse_short(points: int, segments: int) -> None:
    if points < fewest_layers(segments):
        needed = f"{segments} segments need" if segments > 1 else "1 segment needs"
        raise UnfitStoreError(
            f"{needed} at least {fewest_layers(segments)} layers and the curve has {points}: capture more layers"
            + (", or use --pattern auto" if segments > 1 else "")
        )


def _phase_points(last: NDArray[np.intp], shape: Shape) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and last point of every phase, from the last points of the segments."""
    boundaries = np.concatenate([np.zeros((len(last), 1), np.intp), last], axis=1)
    return boundaries[:, [first for _, first, _ in shape.phases]], boundaries[:, [k + 1 for _, _, k in shape.phases]]


def _at(curves: NDArray[np.float64], points: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.take_along_axis(curves, points, axis=1)


def _interval(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return (np.full(values.shape[1], np.nan),) * 2
    low, high = np.percentile(values, PERCENTILES, axis=0)
    return low, high


def _supported(left_out: NDArray[np.float64], last: NDArray[np.intp], first_rises: bool) -> NDArray[np.bool_]:
    """Whether each segment's change on left-out images excludes 0 with the segment's sign."""
    boundaries = np.concatenate([np.zeros((len(last), 1), np.intp), last], axis=1)
    low, high = _interval(np.diff(_at(left_out, boundaries), axis=1))
    rises = (np.arange(last.shape[1]) % 2 == 0) == first_rises
    return np.where(rises, low > 0, high < 0)


def _held_out_errors(items: ItemSums, most: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean squared error (split, segments - 1) of fits to one half's mean curve on the other half's."""
    count = len(items.sizes)
    halves = np.stack([rng.permutation(count) < count // 2 for _ in range(_SPLITS)])
    fitted, scored = weighted_means(halves, items), weighted_means(~halves, items)
    by_sign = [segment_all(fitted, most, first_rises=rises) for rises in (True, False)]
    errors = np.empty((_SPLITS, most))
    for k in range(most):
        up, down = by_sign[0][k], by_sign[1][k]
        for split in range(_SPLITS):
            first_rises = bool(up.cost[split] <= down.cost[split])
            last = (up if first_rises else down).last[split]
            errors[split, k] = np.mean((scored[split] - _fit(fitted[split], last, first_rises)) ** 2)
    return errors


def _fit(curve: NDArray[np.float64], last: NDArray[np.intp], first_rises: bool) -> NDArray[np.float64]:
    from scipy.optimize import isotonic_regression  # noqa: PLC0415  (a second of import that fixed patterns spare)

    fit = np.empty_like(curve)
    # From the last segment back: a shared point keeps the fit of the segment that it ends.
    for k in reversed(range(len(last))):
        piece = slice(last[k - 1] if k else 0, last[k] + 1)
        fit[piece] = isotonic_regression(curve[piece], increasing=(k % 2 == 0) == first_rises).x
    return fit
