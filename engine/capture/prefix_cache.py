"""Keys and values of shared prefixes: recorded in one forward pass, attended to in those over the samples' own tokens.

transformers' own cache copies what it records, and would keep the keys of every sample of every block; here those of a
block are laid out behind their prefixes when it runs, and dropped with its output.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["PrefixCache", "cache_bytes", "why_no_cache"]


def why_no_cache(config: Any) -> str | None:
    """Say why a language model's prefixes cannot be run once, from its configuration; None where they can.

    Parameters
    ----------
    config
        Of the language model.
    """
    layers = DynamicCache(config=config).layers
    kinds = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    return f"its cache has {', '.join(sorted(kinds))}, which forgets keys of the prefix" if kinds else None


def cache_bytes(config: Any, positions: int, itemsize: int) -> int:
    """Bytes of the keys and values of so many positions, in all blocks.

    Parameters
    ----------
    config
        Of the language model.
    positions
        Padded positions of all prefixes.
    itemsize
        Bytes of a number in the dtype of the model.
    """
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 2 * int(config.num_hidden_layers) * heads * width * positions * itemsize


class PrefixCache:
    """Keys and values of some prefixes.

    Parameters
    ----------
    config
        Of the language model.
    """

    def __init__(self, config: Any) -> None:
        self._blocks: list[_Recorded] = [_Recorded() for _ in range(int(config.num_hidden_layers))]

    @property
    def nbytes(self) -> int:
        """Bytes of what is recorded."""
        return sum(states.nbytes for block in self._blocks for states in block.states)

    def recorder(self) -> Cache:
        """Make the cache for the forward pass over the prefixes."""
        return Cache(layers=[*self._blocks])

    def behind(self, prefix_of: Sequence[int]) -> Cache:
        """Make a cache in which every sample of a batch has its prefix before it.

        Parameters
        ----------
        prefix_of
            Per sample the number of its prefix.
        """
        numbered = groupby(enumerate(prefix_of), key=lambda sample: sample[1])
        shares = []
        for number, samples in numbered:
            rows = [row for row, _ in samples]
            shares.append(_Share(number, rows[0], rows[-1] + 1))
        room: _Room = {}
        return Cache(layers=[_Behind(*block.states, shares, room) for block in self._blocks])


class _Share(NamedTuple):
    """Samples [start, stop) of a batch have the same prefix."""

    prefix: int
    start: int
    stop: int


# Blocks run one after the other: those on a device lay their keys out in the same memory, and their values.
_Room = dict[tuple[str, torch.device, torch.Size], torch.Tensor]


class _Recorded(DynamicLayer):
    """One block's keys and values of the prefixes, (prefix, key head, position, head_dim), as the block made them."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_arguments: Any, **_keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what the block attends to."""
        self.states = (key_states, value_states)
        return self.states


class _Behind(DynamicLayer):
    """One block's keys and values of the samples of a batch, each behind its prefix; it keeps nothing of them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, shares: Sequence[_Share], room: _Room) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        # Where transformers looks for the length of what precedes a batch.
        self.keys, self.values = keys, values
        self._prefixes = (keys, values)
        self._shares = shares
        self._room = room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_arguments: Any, **_keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay a batch's own keys and values out behind their prefixes."""
        keys, values = self._prefixes
        return self._joined("keys", keys, key_states), self._joined("values", values, value_states)

    def _joined(self, name: str, prefixes: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        past = prefixes.shape[2]
        place = (name, own.device, own.shape)
        if place not in self._room:
            samples, heads, length, width = own.shape
            self._room[place] = own.new_empty(samples, heads, past + length, width)
        joined = self._room[place]
        joined[:, :, past:] = own
        for number, start, stop in self._shares:
            joined[start:stop, :, :past] = prefixes[number]
        return joined
