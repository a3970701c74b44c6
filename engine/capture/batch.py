"""What goes into a forward pass, and what is kept of it.

Whole language sequences are left-padded with an attention mask and explicit positions; the text of a side encoder is
right-padded, because its positions count from its first token. A pass may also run over a stretch of each sequence
alone, where the keys and values of what precedes it are at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.capture.block_rows import BlockRows
from engine.capture.lens import Pieces
from engine.capture.pooling import Pooled
from engine.models.tokens import TokenLayout

__all__ = ["BatchCapture", "BatchItem", "Run", "collate", "whole_runs"]


class BatchItem(NamedTuple):
    """One sample of a batch.

    Attributes
    ----------
    image
        Number of its image within the part.
    side_text
        Inputs of a text encoder beside the language model by name, (token,) int64 each; empty where there is none.
    wanted
        (token,) bool: the tokens that are stored, those of all tensors together.
    prefix
        Leading tokens that it shares with its image's other samples.
    """

    sample_id: str
    image: int
    layout: TokenLayout
    pixel_values: torch.Tensor
    side_text: Mapping[str, np.ndarray]
    wanted: np.ndarray
    prefix: int


class Run(NamedTuple):
    """Positions [start, stop) of a sample's sequence, which one forward pass computes."""

    item: BatchItem
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.stop - self.start

    @property
    def role(self) -> np.ndarray:
        """(position,) role codes."""
        return self.item.layout.role[self.start : self.stop]


@dataclass(frozen=True)
class BatchCapture:
    """What one forward pass leaves.

    Attributes
    ----------
    states
        Per captured layer the kept rows of all usable samples, (row, dim) on the host; empty without ``residual``. Of
        tokens whose role the probe's ``tensor_roles`` leave out there are none.
    pieces
        Per layer of the lens the best pieces of the kept rows of all usable samples, on the host; of the roles of the
        lens. Empty without it.
    pooled
        Pooled states of the usable samples, or None.
    block_rows
        What is kept of the blocks, or None.
    kept
        Per sample (token,) bool: the stored tokens; ``states``, ``pieces`` and each of ``block_rows.token`` have rows
        of those of them that they are kept of. The shared prefix of an image is kept with its first usable sample only,
        and nothing of an unusable one.
    problems
        Per sample a reason why its values are unusable, or None.
    """

    states: list[torch.Tensor]
    pieces: list[Pieces]
    pooled: Pooled | None
    block_rows: BlockRows | None
    kept: tuple[np.ndarray, ...]
    problems: tuple[str | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all values on the host."""
        pooled = () if self.pooled is None else (values for values in self.pooled if values is not None)
        blocks = () if self.block_rows is None else (*self.block_rows.key.values(), *self.block_rows.token.values())
        rows = sum(rows.nbytes for layers in (self.states, *self.pieces, *blocks) for rows in layers)
        return rows + sum(values.nbytes for values in pooled)


def whole_runs(items: Sequence[BatchItem]) -> tuple[Run, ...]:
    """Make runs over the whole sequences of samples."""
    return tuple(Run(item, 0, len(item.layout)) for item in items)


def collate(
    runs: Sequence[Run], *, pad_id: int, padding: int = 0, past: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Pad a batch.

    Parameters
    ----------
    runs
        What is run, all from their sequence's start, or all after it.
    pad_id
        Token id of padding.
    padding
        Positions of padding before the longest run too.
    past
        (run, past position) int64, 1 where keys and values of what precedes the runs are no padding; None where nothing
        precedes them.

    Returns
    -------
    dict
        input_ids, position_ids (run, position), left-padded; attention_mask (run, past position + position);
        pixel_values and the inputs of a side encoder (run, side position), right-padded with zeros, where runs begin
        with their sequence.
    """
    length = padding + max(run.length for run in runs)
    input_ids = torch.full((len(runs), length), pad_id, dtype=torch.long)
    position_ids = torch.zeros((len(runs), length), dtype=torch.long)
    own = torch.zeros((len(runs), length), dtype=torch.long)
    for row, run in enumerate(runs):
        begin = length - run.length
        token_id = run.item.layout.token_id[run.start : run.stop]
        input_ids[row, begin:] = torch.from_numpy(token_id.astype(np.int64))
        position_ids[row, begin:] = torch.arange(run.start, run.stop)
        own[row, begin:] = 1
    inputs = {"input_ids": input_ids, "position_ids": position_ids}
    if past is not None:
        return {**inputs, "attention_mask": torch.cat([past, own], dim=1)}
    items = [run.item for run in runs]
    return {
        **inputs,
        "attention_mask": own,
        "pixel_values": torch.cat([item.pixel_values for item in items]),
        **{name: _right_padded([item.side_text[name] for item in items]) for name in items[0].side_text},
    }


def _right_padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row)
    return padded
