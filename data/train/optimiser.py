"""How weights are updated: Muon for the matrices inside blocks, AdamW for everything else, on a one-cycle schedule.

Muon orthogonalises the update of a hidden matrix and needs a quarter fewer steps here than AdamW alone; embeddings, the
unembedding, norms and biases are not what it is made for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Optimiser", "Rates"]

_WARM_UP = 0.05
_FINAL = 0.01
_CLIP = 1.0
_DECAY = 0.05


class Rates(NamedTuple):
    """Peak learning rates."""

    matrices: float
    """Muon's, scaled so that an update has AdamW's usual size."""
    others: float
    """AdamW's."""


class Optimiser:
    """Both optimisers and their schedule behind one ``update``.

    Parameters
    ----------
    groups : sequence of (list of nn.Module, float)
        Modules, and a factor on the rates for them.
    rates : Rates
    steps : int
        Length of the cycle: a linear warm-up, then a cosine to a hundredth.
    """

    def __init__(self, groups: Sequence[tuple[list[nn.Module], float]], rates: Rates, steps: int) -> None:
        matrices, others = [], []
        for modules, factor in groups:
            named = [pair for module in modules for pair in module.named_parameters()]
            hidden = [weight for name, weight in named if _is_hidden(name, weight)]
            rest = [(name, weight) for name, weight in named if not _is_hidden(name, weight)]
            if hidden:
                matrices.append({"params": hidden, "lr": rates.matrices * factor})
            for decay, chosen in ((_DECAY, _matrices(rest)), (0.0, _vectors(rest))):
                others.append({"params": list(chosen), "lr": rates.others * factor, "weight_decay": decay})
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([group for group in others if group["params"]], betas=(0.9, 0.95)),
        ]
        self._parameters = [p for o in self._optimisers for group in o.param_groups for p in group["params"]]
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(o, _one_cycle(steps)) for o in self._optimisers]

    def update(self, loss: Tensor) -> None:
        """Take one step down the gradient of ``loss``."""
        for optimiser in self._optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            optimiser.step()
            schedule.step()


def _one_cycle(steps: int) -> Callable[[int], float]:
    warm = max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        return _FINAL + (1 - _FINAL) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _is_hidden(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and ("layers." in name or name.startswith("linear_"))


def _matrices(named: Sequence[tuple[str, Tensor]]) -> Iterator[Tensor]:
    return (weight for _, weight in named if weight.ndim > 1)


def _vectors(named: Sequence[tuple[str, Tensor]]) -> Iterator[Tensor]:
    return (weight for _, weight in named if weight.ndim <= 1)
