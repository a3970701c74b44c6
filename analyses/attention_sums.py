"""Sums of attention rows over keys: per sample and role, and per bin of a map. Pure, NumPy in and out."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["bin_sums", "role_sums", "row_shares"]


def role_sums(
    rows: NDArray[np.float64], sample: NDArray[np.int64], role: NDArray[np.int64], samples: int, roles: int
) -> NDArray[np.float64]:
    """Sum rows over the keys of each sample and role.

    Parameters
    ----------
    rows : array (..., key)
    sample, role : arrays (key) of int
    samples, roles : int

    Returns
    -------
    array (..., sample, role), float64
    """
    return _binned(rows, sample * roles + role, samples * roles).reshape(*rows.shape[:-1], samples, roles)


def row_shares(rows: NDArray[np.float64], sample: NDArray[np.int64], samples: int) -> NDArray[np.float64]:
    """Divide every value by the sum over its sample's keys; NaN where that is 0.

    Parameters
    ----------
    rows : array (..., key)
    sample : array (key) of int
    samples : int

    Returns
    -------
    array (..., key), float64
    """
    totals = _binned(rows, sample, samples)[..., sample]
    return np.divide(rows, totals, out=np.full(rows.shape, np.nan), where=totals > 0)


def bin_sums(
    values: NDArray[np.float64], group: NDArray[np.int64], bins: NDArray[np.int64], groups: int, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum values over the keys of each group and bin, and count those that are there.

    Parameters
    ----------
    values : array (..., key)
        NaN where a key does not count.
    group, bins : arrays (key) of int
        A key of bin -1 does not count.
    groups, count : int
        How many of each there are.

    Returns
    -------
    sums, counts : arrays (..., group, bin), float64
    """
    inside = bins >= 0
    there = values[..., inside]
    codes = group[inside] * count + bins[inside]
    finite = np.isfinite(there)
    shape = (*values.shape[:-1], groups, count)
    sums = _binned(np.where(finite, there, 0), codes, groups * count)
    return sums.reshape(shape), _binned(finite.astype(np.float64), codes, groups * count).reshape(shape)


def _binned(values: NDArray[np.float64], codes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Sum (..., key) over keys of equal code: (..., code)."""
    flat = values.reshape(-1, values.shape[-1])
    sums = [np.bincount(codes, row, minlength=count) for row in flat]
    return np.array(sums, np.float64).reshape(*values.shape[:-1], count)
