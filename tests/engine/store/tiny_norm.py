"""The final norm of small stores, from its definition."""

from typing import NamedTuple

import numpy as np

NORM_EPS = 1e-5


class TinyNorm(NamedTuple):
    """An ``rms`` norm, or where it has a bias a ``layer`` norm; ``offset`` is added to the weight before use."""

    weight: np.ndarray
    bias: np.ndarray | None = None
    offset: float = 0.0

    @property
    def kind(self) -> str:
        return "rms" if self.bias is None else "layer"

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Norm states (..., dim) float64."""
        if self.bias is None:
            return states / np.sqrt((states**2).mean(-1, keepdims=True) + NORM_EPS) * (self.weight + self.offset)
        scale = np.sqrt(states.var(-1, keepdims=True) + NORM_EPS)
        return (states - states.mean(-1, keepdims=True)) / scale * (self.weight + self.offset) + self.bias
