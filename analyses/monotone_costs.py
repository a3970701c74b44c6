"""Costs of monotone fits to every stretch of many curves at once.

Fitting one stretch is scipy's ``isotonic_regression``; a boundary search needs all n²/2 stretches of a curve and a
bootstrap needs them for a thousand curves. Pool-adjacent-violators is incremental: the fit to ``[i, j]`` is the fit to
``[i, j-1]`` with one point pushed and blocks merged, so all starts of all curves advance together, one layer at a time.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["monotone_costs"]


def monotone_costs(curves: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared error of the best non-decreasing fit to every stretch of every curve.

    Parameters
    ----------
    curves : array (curve, layer)
        Finite values. Negate them for non-increasing fits.

    Returns
    -------
    array (curve, layer, layer), float64
        ``costs[c, i, j] = min over non-decreasing f of Σ_{i ≤ t ≤ j} (curves[c, t] − f_t)²``, exactly 0 where the
        stretch is non-decreasing already; infinity below the diagonal.
    """
    values = np.asarray(curves, np.float64)
    count, length = values.shape
    costs = np.full((count, length, length), np.inf)
    stacks = _Stacks(count * length, length)
    for end in range(length):
        # Starts after `end` have an empty stack; only rows 0..end of each curve take part.
        rows = (np.arange(count)[:, None] * length + np.arange(end + 1)).ravel()
        stacks.push(rows, np.repeat(values[:, end], end + 1))
        costs[:, : end + 1, end] = stacks.cost(rows).reshape(count, end + 1)
    return costs


class _Stacks:
    """One stack of pooled blocks per row: mean, size, and the summed cost of this block and all below it."""

    def __init__(self, rows: int, depth: int) -> None:
        self.mean = np.zeros((rows, depth))
        self.size = np.zeros((rows, depth))
        self.below = np.zeros((rows, depth + 1))
        self.height = np.zeros(rows, np.intp)

    def cost(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return self.below[rows, self.height[rows]]

    def push(self, rows: NDArray[np.intp], value: NDArray[np.float64]) -> None:
        mean, size, cost = value.copy(), np.ones(len(rows)), np.zeros(len(rows))
        active = np.arange(len(rows))
        while active.size:
            top = self.height[rows[active]] - 1
            previous = np.where(top >= 0, self.mean[rows[active], top], -np.inf)
            violates = previous > mean[active]
            active, top = active[violates], top[violates]
            below = rows[active]
            other = self.size[below, top]
            gap = self.mean[below, top] - mean[active]
            both = other + size[active]
            # Pooling two blocks adds n₁n₂/(n₁+n₂)·(m₁−m₂)², so a stretch in order keeps cost 0 to the last bit.
            cost[active] += (
                self.below[below, top + 1] - self.below[below, top] + gap * gap * other * size[active] / both
            )
            mean[active] += gap * other / both
            size[active] = both
            self.height[below] = top
        height = self.height[rows]
        self.mean[rows, height], self.size[rows, height] = mean, size
        self.below[rows, height + 1] = self.below[rows, height] + cost
        self.height[rows] = height + 1
