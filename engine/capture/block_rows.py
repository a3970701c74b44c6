"""Rows that a batch leaves of the blocks, and names of their arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

__all__ = ["KEY_TENSORS", "TOKEN_TENSORS", "BlockRows"]

KEY_TENSORS = ("attention", "attention_norm")
TOKEN_TENSORS = ("value_norm", "attention_mass", "attention_output", "mlp_output")


class BlockRows(NamedTuple):
    """Rows of a batch's usable samples, on the host, by name, one tensor per block of which the array is kept.

    Attributes
    ----------
    key
        ``attention`` (row, head, query), ``attention_norm`` (row, query), float32: a row per position of every sample;
        NaN where a sample lacks a query.
    token
        ``value_norm`` (row, head), ``attention_mass`` (row, head, source role), float32; ``attention_output``,
        ``mlp_output`` (row, dim) in the dtype of the model: a row per token of which the array is kept.
    """

    key: Mapping[str, list[torch.Tensor]]
    token: Mapping[str, list[torch.Tensor]]
