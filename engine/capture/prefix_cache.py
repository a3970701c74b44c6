"""Keys and values of shared prefixes: recorded in one forward pass, attended to in those over the samples' own tokens.

transformers' own cache would keep the keys of every sample of every block; here a block's are laid beside those of the
prefixes when it runs, and dropped with its output.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from engine.capture.rows import OnDevices

__all__ = ["cache_bytes", "new_cache", "why_no_cache", "with_prefixes"]


def why_no_cache(config: Any) -> str | None:
    """Say why a language model's prefixes cannot be run once, from its configuration; None where they can.

    Parameters
    ----------
    config
        Of the language model.
    """
    kinds = {type(layer).__name__ for layer in new_cache(config).layers if type(layer) is not DynamicLayer}
    return f"its cache has {', '.join(sorted(kinds))}, which forgets keys of the prefix" if kinds else None


def new_cache(config: Any) -> DynamicCache:
    """Make an empty cache for a forward pass over prefixes."""
    return DynamicCache(config=config)


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


def with_prefixes(recorded: DynamicCache, prefix_of: torch.Tensor) -> Cache:
    """Make a cache in which every sample of a batch has its prefix behind it.

    Parameters
    ----------
    recorded
        Filled by the forward pass over the prefixes.
    prefix_of
        (sample,) int64: number of its prefix.
    """
    rows = OnDevices(prefix_of)
    return Cache(layers=[_PrefixLayer(keys, values, rows) for keys, values, _ in recorded])


class _PrefixLayer(DynamicLayer):
    """One block's keys and values of prefixes, (prefix, key head, position, head_dim); it keeps nothing else."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, prefix_of: OnDevices) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        # Where transformers looks for their length.
        self.keys, self.values = keys, values
        self._shared = (keys, values)
        self._prefix_of = prefix_of

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_arguments: Any, **_keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay a batch's own keys and values behind those of its prefixes."""
        rows = self._prefix_of.at(key_states.device)
        keys, values = (shared.index_select(0, rows) for shared in self._shared)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
