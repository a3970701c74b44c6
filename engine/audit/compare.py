"""How far stored vectors are from those of a fresh forward pass, and how far fresh passes are from each other.

Pure. A vector is what belongs to one token (or one query, role, …): a state, a row of attention. Differences are in
units of the fresh vector's length, because some tokens of a language model have states a hundred times longer than the
others: in absolute numbers their noise alone would hide any error of the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Deviations", "compare_vectors"]

Floats = NDArray[np.float64]


class Deviations(NamedTuple):
    """One value per vector, all of the same shape.

    Attributes
    ----------
    difference
        Largest difference between stored and fresh components beyond what rounding explains, per length of the fresh
        vector; infinite where one of the two is not finite.
    floor
        The largest such difference between the fresh pass and its repetitions.
    angle
        1 − cosine between stored and fresh vector.
    stretch
        How far the ratio of their lengths is from 1; the cosine cannot see it.
    at
        The component with the largest difference.
    """

    difference: NDArray[np.float32]
    floor: NDArray[np.float32]
    angle: NDArray[np.float32]
    stretch: NDArray[np.float32]
    at: NDArray[np.int32]


def compare_vectors(
    stored: Floats, fresh: Floats, others: Sequence[Floats], allowance: NDArray[np.floating] | float = 0.0
) -> Deviations:
    """Compare vectors along the last axis.

    Parameters
    ----------
    stored, fresh
        (..., component): stored values, those of a fresh pass. NaN in both is agreement: there is no such value.
    others
        Those of fresh passes that differ from it by noise alone; at least one.
    allowance
        What each component may be off because it was rounded for storing, absolute; taken off every difference.
    """
    known = np.isfinite(fresh)
    broken = np.isfinite(stored) != known
    fresh = np.where(known, fresh, 0.0)
    offset = np.where(known & ~broken, stored, fresh) - fresh
    # Made from the magnitude of the values, the allowance is NaN where they are.
    offset = np.sign(offset) * np.maximum(np.abs(offset) - np.where(known, allowance, 0.0), 0.0)
    noise = np.max([np.abs(np.where(known & np.isfinite(other), other, fresh) - fresh) for other in others], axis=0)

    length = np.linalg.norm(fresh, axis=-1)
    unit = np.where(length > 0, length, 1.0)
    difference = np.where(broken, np.inf, np.abs(offset)) / unit[..., None]
    angle, stretch = _turn(fresh, fresh + offset, length)
    return Deviations(
        difference=difference.max(axis=-1, initial=0.0).astype(np.float32),
        floor=(noise.max(axis=-1, initial=0.0) / unit).astype(np.float32),
        angle=np.where(broken.any(axis=-1), np.inf, angle).astype(np.float32),
        stretch=stretch.astype(np.float32),
        at=(difference.argmax(axis=-1) if difference.shape[-1] else np.zeros(length.shape)).astype(np.int32),
    )


def _turn(fresh: Floats, stored: Floats, length: Floats) -> tuple[Floats, Floats]:
    """Angle and stretch of vectors without NaN; two zero vectors agree, a zero vector and another one do not."""
    stored_length = np.linalg.norm(stored, axis=-1)
    both, neither = (length > 0) & (stored_length > 0), (length == 0) & (stored_length == 0)
    one, two = (np.where(both, lengths, 1.0)[..., None] for lengths in (length, stored_length))
    # 1 − cos as half the squared distance of unit vectors: 1 minus a sum of products would lose all digits near 0.
    apart = 0.5 * np.square(fresh / one - stored / two).sum(axis=-1)
    ratio = np.divide(stored_length, length, out=np.full(length.shape, np.inf), where=length > 0)
    return np.where(both, apart, np.where(neither, 0.0, 1.0)), np.where(neither, 0.0, np.abs(ratio - 1.0))
