"""Means of states per role: sums of each forward pass on the device, put together where a sample took two of them.

The sums over a shared prefix are made once, in the pass that computes it, and serve all samples of its image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.rows import OnDevices
from engine.models.final_norm import normed_states
from engine.models.load import LanguageModel
from engine.store import LARGEST_NORM
from engine.vocabulary import ROLES

__all__ = ["Pooled", "RoleSums", "pool"]


class Pooled(NamedTuple):
    """Pooled states of a batch's usable samples, float32, NaN where a sample has no token of a role.

    Attributes
    ----------
    unit_mean, mean
        (layer, role, sample, dim): mean of unit vectors, mean of states.
    normed_unit_mean
        (role, sample, dim): mean of unit vectors of layer L after the final norm; None where L is not captured.
    token_count
        (role, sample) int32.
    """

    unit_mean: np.ndarray
    mean: np.ndarray
    normed_unit_mean: np.ndarray | None
    token_count: np.ndarray


class RoleSums:
    """Sums over the tokens of each role, for every run of a forward pass, on the device the states are on.

    Parameters
    ----------
    roles
        Per run the (position,) role codes.

    Attributes
    ----------
    unit, plain
        Per layer (role, run, dim) float32: sums of unit vectors, of states.
    normed
        The same of unit vectors of layer L after the final norm; empty where L is not captured.
    count
        (role, run) int64.
    """

    def __init__(self, roles: Sequence[np.ndarray]) -> None:
        group = np.concatenate([role * len(roles) + run for run, role in enumerate(roles)])
        matrix = torch.zeros(len(ROLES) * len(roles), len(group))
        matrix[torch.from_numpy(group).long(), torch.arange(len(group))] = 1.0
        self._matrix = OnDevices(matrix)
        self._runs = len(roles)
        self.count = matrix.sum(dim=1).long().view(len(ROLES), len(roles))
        self.unit: list[torch.Tensor] = []
        self.plain: list[torch.Tensor] = []
        self.normed: list[torch.Tensor] = []

    def add(self, wide: torch.Tensor, norms: torch.Tensor, *, last_of: LanguageModel | None) -> None:
        """Sum one layer's states (row, dim) float32, whose norms are (row,).

        Parameters
        ----------
        wide, norms
            The states of all runs, one after the other.
        last_of
            The language model where this is its last layer.
        """
        matrix = self._matrix.at(wide.device)
        # One product serves the whole batch, and 0 · NaN is NaN: an unusable row must not reach the other samples.
        usable = (norms > 0) & (norms <= LARGEST_NORM)
        wide, norms = wide.where(usable[:, None], 1.0), norms.where(usable, 1.0)
        self.plain.append(self._shaped(matrix @ wide))
        self.unit.append(self._shaped((matrix / norms) @ wide))
        if last_of is not None:
            normed = normed_states(last_of.final_norm, wide).to(wide.device)
            self.normed.append(self._shaped((matrix / torch.linalg.vector_norm(normed, dim=-1)) @ normed))

    def _shaped(self, sums: torch.Tensor) -> torch.Tensor:
        return sums.view(len(ROLES), self._runs, -1)


def pool(
    own: RoleSums,
    usable: np.ndarray,
    to_host: Callable[[torch.Tensor], torch.Tensor],
    *,
    prefixes: RoleSums | None = None,
    prefix_of: Sequence[int] = (),
) -> Pooled:
    """Make the means of a batch's usable samples.

    Parameters
    ----------
    own
        Sums over the samples' own pass.
    usable
        (sample,) bool.
    to_host
        Brings a tensor to the host.
    prefixes
        Sums over the prefixes that the samples share; None where their own pass is all there is.
    prefix_of
        Per sample the number of its prefix.
    """
    shared = OnDevices(torch.tensor(prefix_of, dtype=torch.long))
    count = own.count if prefixes is None else own.count + prefixes.count[:, list(prefix_of)]
    divisor, absent = OnDevices(count.clamp(min=1)), OnDevices(count == 0)
    chosen = OnDevices(torch.from_numpy(np.flatnonzero(usable)))

    def means(layers: Sequence[torch.Tensor], of_prefixes: Sequence[torch.Tensor]) -> np.ndarray:
        """Lay out sums (role, sample, dim) of layers as means (layer, role, usable sample, dim)."""
        device = layers[0].device
        total = torch.stack([sums.to(device) for sums in layers])
        if prefixes is not None:
            # Layer by layer, because the prefixes of all layers would be copied for every sample at once.
            for layer, sums in enumerate(of_prefixes):
                total[layer] += sums.to(device).index_select(1, shared.at(device))
        total /= divisor.at(device)[..., None]
        total.masked_fill_(absent.at(device)[..., None], torch.nan)
        return to_host(total.index_select(2, chosen.at(device))).numpy()

    before = own if prefixes is None else prefixes
    return Pooled(
        unit_mean=means(own.unit, before.unit),
        mean=means(own.plain, before.plain),
        normed_unit_mean=means(own.normed, before.normed)[0] if own.normed else None,
        token_count=count.numpy().astype(np.int32)[:, usable],
    )
