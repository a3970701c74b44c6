"""The model's own final norm, computed in float32."""

import torch
from torch.func import functional_call

from engine.store import LARGEST_NORM

__all__ = ["normed_states"]


def normed_states(final_norm: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Apply a final norm once.

    RMS norms (Zhang and Sennrich 2019), with Gemma's 1 + weight or without, keep float32 where they get it, but layer
    norm (Ba, Kiros and Hinton 2016) refuses it beside 16-bit weights: the weights are widened for all of them.

    Parameters
    ----------
    final_norm
        The module, in any dtype.
    states
        (row, dim), before the norm.

    Returns
    -------
    Tensor
        (row, dim) float32, on the device of the norm; NaN where a state is not finite or its norm exceeds
        `LARGEST_NORM`.
    """
    weights = {name: weight.float() for name, weight in final_norm.named_parameters()}
    device = next(iter(weights.values())).device
    wide = states.to(device).float()
    normed: torch.Tensor = functional_call(final_norm, weights, (wide,))
    too_large = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) > LARGEST_NORM
    return normed.masked_fill(too_large, torch.nan)
