"""The model's final norm in NumPy, read from the store, for states of the last layer.

Stores keep the last layer before this norm. Figures in the papers most likely show it after, so analyses add that row
under its own mark instead of choosing silently.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FinalNorm"]


class FinalNorm(NamedTuple):
    """Parameters of the norm between the last block and the unembedding.

    Attributes
    ----------
    kind : ``"rms"`` or ``"layer"``
        Root mean square norm (Zhang and Sennrich 2019) or layer norm (Ba, Kiros and Hinton 2016).
    weight : array (dim), float32
    bias : array (dim), float32, or None
    eps : float
    weight_offset : float
        Added to the weight before use (1 in Gemma, whose checkpoints store the weight minus one).
    """

    kind: Literal["rms", "layer"]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    eps: float
    weight_offset: float

    def __call__(self, states: NDArray[np.floating]) -> NDArray[np.float32]:
        """Normalize states (..., dim), computing in float32 as the models do; non-finite input stays non-finite."""
        values = states.astype(np.float32)
        if self.kind == "layer":
            values -= values.mean(axis=-1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            variance = np.mean(np.square(values), axis=-1, keepdims=True)
            values /= np.sqrt(variance + np.float32(self.eps))
            values *= self.weight + np.float32(self.weight_offset)
        return values if self.bias is None else values + self.bias
