"""What a pass over the model captures."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from engine.store import TENSOR_ARRAYS
from engine.vocabulary import ROLE_CODES

__all__ = ["Probe"]


class Probe(NamedTuple):
    """What to capture.

    Attributes
    ----------
    layers
        Layer numbers, whose states are stored or pooled, and looked at for values that are not finite.
    residual, pooled
        Stored states, pooled states.
    residual_layers
        Those of the layers whose states are stored; None for all.
    lens_layers
        Layers whose states go through the final norm and the unembedding; empty without lens, and among those whose
        states are stored, where states are.
    block_count
        L, the number of blocks.
    attention
        Rows of the kept queries with their norms, and norms of values.
    queries
        Names of the kept queries; see :mod:`engine.capture.queries`.
    blocks
        Numbers of the blocks, within 1..L, of which anything of ``attention`` and below is kept.
    mass
        How much of every token's attention goes to each role.
    attention_output, mlp_output
        What the two halves of a block put out.
    tensor_roles, tensor_blocks
        By name of a tensor (``TENSOR_ARRAYS``) the roles of whose tokens, and the blocks of which it is kept, where
        these are fewer than those of all tensors together.
    """

    layers: tuple[int, ...]
    residual: bool
    pooled: bool
    block_count: int
    attention: bool = False
    queries: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    mass: bool = False
    attention_output: bool = False
    mlp_output: bool = False
    residual_layers: tuple[int, ...] | None = None
    lens_layers: tuple[int, ...] = ()
    tensor_roles: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    tensor_blocks: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """Layers whose states are stored, where states are."""
        return self.layers if self.residual_layers is None else self.residual_layers

    @property
    def token_layers(self) -> tuple[int, ...]:
        """Layers of the token axis, of which rows are kept; empty where no array of tokens has layers."""
        return self.stored_layers if self.residual else self.lens_layers

    @property
    def of_blocks(self) -> bool:
        """Whether anything of the blocks is kept."""
        return self.attention or self.mass or self.attention_output or self.mlp_output

    @property
    def attended_blocks(self) -> tuple[int, ...]:
        """Blocks whose attention is looked at."""
        names = [name for name, on in (("attention", self.attention), ("attention_mass", self.mass)) if on]
        return tuple(block for block in self.blocks if any(block in self.blocks_of(name) for name in names))

    def blocks_of(self, array: str) -> tuple[int, ...]:
        """Blocks of which an array is kept, by its name without the group: ``value_norm``."""
        fewer = self.fewer_blocks_of(array)
        return self.blocks if fewer is None else fewer

    def fewer_blocks_of(self, array: str) -> tuple[int, ...] | None:
        """Blocks of which an array is kept, where these are fewer than those of all arrays; else None."""
        return self.tensor_blocks.get(_TENSOR_OF[array])

    def fewer_layers_of(self, array: str) -> tuple[int, ...] | None:
        """Layers of which an array is kept, where these are fewer than those of the token axis; else None."""
        fewer = _TENSOR_OF[array] == "lens" and self.lens_layers != self.token_layers
        return self.lens_layers if fewer else None

    def fewer_roles_of(self, array: str) -> tuple[str, ...] | None:
        """Roles of whose tokens an array is kept, where these are fewer than those of all arrays; else None."""
        return self.tensor_roles.get(_TENSOR_OF[array])

    def keeps(self, array: str, role: np.ndarray) -> np.ndarray:
        """Which of some wanted tokens an array is kept of, (token,) bool, from their (token,) role codes."""
        roles = self.fewer_roles_of(array)
        return np.ones(len(role), bool) if roles is None else np.isin(role, [ROLE_CODES[name] for name in roles])


_TENSOR_OF = {path.split("/")[1]: tensor for tensor, paths in TENSOR_ARRAYS.items() for path in paths}
