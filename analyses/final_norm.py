"""The model's final norm in NumPy, read from the store, for states of the last layer.

Stores keep the last layer before this norm. Figures in the papers most likely show it after, so analyses add that row
under its own mark instead of choosing silently.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.token_blocks import as_float32
from engine.errors import StrataError
from engine.store import LARGEST_NORM, Store

__all__ = ["FinalNorm", "read_final_norm"]


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
        """Normalize states (..., dim), computing in float32 as the models do.

        What is not finite stays so, and a state whose norm exceeds `LARGEST_NORM` becomes NaN: the sum of its squares
        overflows, which would make it zeros.
        """
        values = as_float32(states)
        with np.errstate(over="ignore", invalid="ignore"):
            values[np.sqrt(np.vecdot(values, values)) > LARGEST_NORM] = np.nan
            if self.kind == "layer":
                values -= values.mean(axis=-1, keepdims=True)
            variance = np.vecdot(values, values) / np.float32(values.shape[-1])
            values /= np.sqrt(variance + np.float32(self.eps))[..., np.newaxis]
            values *= self.weight + np.float32(self.weight_offset)
        return values if self.bias is None else values + self.bias


def read_final_norm(store: Store) -> FinalNorm:
    """Read the norm of a store's model.

    Raises
    ------
    StrataError
        Its kind is unknown.
    """
    model = store.model
    kind = model.norm_kind
    if kind not in ("rms", "layer"):
        raise StrataError(f"{store.url} has the final norm {kind!r}; this strata knows rms and layer: upgrade strata")
    bias = model.final_norm_bias
    return FinalNorm(
        kind="rms" if kind == "rms" else "layer",
        weight=model.final_norm_weight.astype(np.float32),
        bias=None if bias is None else bias.astype(np.float32),
        eps=model.norm_eps,
        weight_offset=model.norm_weight_offset,
    )
