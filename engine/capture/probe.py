"""What a pass over the model captures."""

from typing import NamedTuple

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
    block_count
        L, the number of blocks.
    attention
        Rows of the kept queries with their norms, and norms of values.
    queries
        Names of the kept queries; see :mod:`engine.capture.queries`.
    blocks
        Numbers of the blocks, within 1..L, of which everything below and ``attention`` is kept.
    mass
        How much of every token's attention goes to each role.
    attention_output, mlp_output
        What the two halves of a block put out.
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

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """Layers whose states are stored, where states are."""
        return self.layers if self.residual_layers is None else self.residual_layers

    @property
    def of_blocks(self) -> bool:
        """Whether anything of the blocks is kept."""
        return self.attention or self.mass or self.attention_output or self.mlp_output
