"""Directions of states before and after the model's final norm, and how far those of a float32 computation may be off.

Everything here is float64, in which its own errors do not count. With u a state x divided by its length, or what the
norm makes of it, an error δ of x's components, or of the norm's, moves u by

    |δu| ≤ (|δ| + |u| ‖δ‖) / (‖x‖ − ‖δ‖)    component by component,

which says nothing where ‖δ‖ reaches ‖x‖: the bound is infinite there, also of a state that is 0. What δ is:

- a component of a state is off by ``relative`` of ``|x| + smallest``: what was rounded for storing, and d + 4 roundings
  of float32, which bound a sum of d terms and what is done with it;
- an ``rms`` norm scales components, so that its own factor, epsilon in it, changes no direction: δ is scaled with x;
- a ``layer`` norm takes off the mean m, which moves a component by ``relative`` of e = |x| + mean |x|, then scales with
  s = 1 / √(var + eps), which is moved by q = ``relative`` · s rms(e) of itself at most: together by ``relative`` of
  s (e + s rms(e) |x − m|) |weight| / (1 − q), and by that of what comes out, for the bias.
"""

from typing import NamedTuple

import numpy as np

from engine.errors import StrataError
from engine.store.reader import Store

__all__ = ["Directions", "FinalNorm", "find_directions", "read_final_norm"]

_FLOAT32 = 2.0**-24
_ROUNDINGS_BESIDE_A_SUM = 4


class Directions(NamedTuple):
    """Unit vectors, and how far each of their components may be off: (token, dim) float64 both."""

    values: np.ndarray
    error: np.ndarray


class FinalNorm(NamedTuple):
    """The norm between the last block and the unembedding.

    Attributes
    ----------
    layer
        Number of the layer whose states it reads.
    kind
        ``rms`` or ``layer``.
    weight
        (dim) float64, its offset added.
    bias
        (dim) float64; of ``layer`` alone, 0 where it has none.
    eps
        Added under the square root.
    """

    layer: int
    kind: str
    weight: np.ndarray
    bias: np.ndarray
    eps: float

    def directions(self, states: np.ndarray, relative: float, smallest: float) -> Directions:
        """Give the unit vectors of normed states (token, dim) float64; parameters as of `find_directions`."""
        relative, sizes = _with_arithmetic(relative, states), np.abs(states) + smallest
        if self.kind == "rms":
            return _directions(states * self.weight, relative * sizes * np.abs(self.weight))
        centred = states - states.mean(axis=1, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + self.eps)
        sizes += sizes.mean(axis=1, keepdims=True)
        of_scale = scale * np.sqrt(np.square(sizes).mean(axis=1, keepdims=True))
        normed = centred * scale * self.weight + self.bias
        moved = scale * (sizes + of_scale * np.abs(centred)) * np.abs(self.weight)
        left = 1 - relative * of_scale
        return _directions(normed, relative * np.where(left > 0, moved / left + np.abs(normed), np.inf))


def find_directions(states: np.ndarray, relative: float, smallest: float) -> Directions:
    """Give the unit vectors of states.

    Parameters
    ----------
    states
        (token, dim) float64, as stored.
    relative
        How much of its own size a stored component may be off from the captured one.
    smallest
        Size below which that share no longer holds, but that of this size.
    """
    return _directions(states, _with_arithmetic(relative, states) * (np.abs(states) + smallest))


def _with_arithmetic(relative: float, states: np.ndarray) -> float:
    return relative + (states.shape[1] + _ROUNDINGS_BESIDE_A_SUM) * _FLOAT32


def _directions(vectors: np.ndarray, error: np.ndarray) -> Directions:
    """Divide vectors (token, dim), whose components may be off so far, by their lengths."""
    length, off = (np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, error))
    with np.errstate(divide="ignore", invalid="ignore"):
        units = vectors / length
        moved = (error + np.abs(units) * off) / (length - off)
    return Directions(units, np.where(off < length, moved, np.inf))


def read_final_norm(store: Store) -> FinalNorm | None:
    """Read a store's norm; None where it is none, or not one of the model's width: each is a problem of its own."""
    try:
        model = store.model
        kind, eps = model.norm_kind, model.norm_eps
        weight = np.asarray(model.final_norm_weight, np.float64) + model.norm_weight_offset
        bias = np.zeros_like(weight) if model.final_norm_bias is None else np.asarray(model.final_norm_bias, np.float64)
    except StrataError:
        return None
    width = store.record["model"].get("dim", len(weight))  # formats before 1.0 may not say it
    usable = len(weight) == len(bias) == width and np.isfinite([weight, bias]).all()
    return FinalNorm(store.block_count, kind, weight, bias, eps) if usable else None
