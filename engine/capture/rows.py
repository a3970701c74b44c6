"""Rows of a batch: small tensors that follow a model over its devices, and picking rows out of captured ones."""

import numpy as np
import torch

__all__ = ["OnDevices", "select_rows"]


class OnDevices:
    """One small host tensor, copied once to each device that a model is spread over: a copy stops the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copies = {tensor.device: tensor}

    def at(self, device: torch.device) -> torch.Tensor:
        """Return the copy on a device."""
        if device not in self._copies:
            self._copies[device] = next(iter(self._copies.values())).to(device)
        return self._copies[device]


def select_rows(rows: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
    """Pick rows by a (row,) bool mask; no copy where it is all of them."""
    return rows if chosen.all() else rows.index_select(0, torch.from_numpy(np.flatnonzero(chosen)).to(rows.device))
