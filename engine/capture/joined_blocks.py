"""What a batch's own pass and the pass over its prefixes computed of the blocks, as rows of the batch's samples.

A query within a prefix attends to the prefix alone: its row is copied for every sample of the image, with weight 0 on
the keys behind it, because each sample has rows of attention of its own.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.capture.block_capture import BlockCollector
from engine.capture.block_rows import KEY_TENSORS, TOKEN_TENSORS, BlockRows
from engine.capture.probe import Probe
from engine.capture.row_places import Computed, Picking, RowPlaces
from engine.capture.rows import OnDevices, select_rows
from engine.errors import StrataError
from engine.models.load import LanguageModel

__all__ = ["JoinedBlocks"]


class JoinedBlocks:
    """Rows of a batch's samples.

    Parameters
    ----------
    language, probe
        The model and what is kept of it.
    places
        Where the batch's rows were computed.
    own, prefix
        What the two passes computed; no prefix where each sample was run in full.
    slots
        (sample, query) int64: the column of a prefix's rows that a sample's query is in; −1 where it is in none.
    """

    def __init__(  # noqa: PLR0917 - what capture_batch has at hand
        self,
        language: LanguageModel,
        probe: Probe,
        places: RowPlaces,
        own: BlockCollector,
        prefix: BlockCollector | None,
        slots: np.ndarray,
    ) -> None:
        self._language = language
        self._probe = probe
        self._places = places
        self._own = own
        self._prefix = prefix
        self._copies = [] if prefix is None else _copies(places, slots)

    def problems(self, lengths: Sequence[int], hint: str) -> list[str | None]:
        """Name per sample the first value that is not finite.

        Raises
        ------
        StrataError
            Where a block was never heard.
        """
        found: list[str | None] = [None] * len(lengths)
        for block in self._probe.blocks:
            for name in _names(self._probe):
                if block not in self._probe.blocks_of(name):
                    continue
                if block not in self._own.finite.get(name, {}):
                    raise StrataError(
                        f"{type(self._language.blocks[block - 1]).__name__} {block} does not attend through "
                        "transformers' AttentionInterface, so its attention cannot be read: leave attention and "
                        "attention-mass out of --capture."
                    )
                for sample, finite in enumerate(self._finite(name, block).split(list(lengths))):
                    if found[sample] is None and not finite.all():
                        position = int((~finite).nonzero()[0])
                        found[sample] = f"{name} of block {block}, position {position} holds NaN or Inf{hint}"
        return found

    def finish(
        self, usable_rows: np.ndarray, kept_rows: np.ndarray, role: np.ndarray, to_host: Callable[..., torch.Tensor]
    ) -> BlockRows:
        """Bring rows to the host.

        Parameters
        ----------
        usable_rows, kept_rows
            (row,) bool over all positions of all samples: those of usable samples, and those whose tokens are stored.
        role
            (row,) role codes.
        to_host
            Brings a tensor to the host.
        """
        probe, names = self._probe, _names(self._probe)

        def of_keys(name: str) -> list[torch.Tensor]:
            return [to_host(select_rows(self._key_rows(name, block), usable_rows)) for block in probe.blocks_of(name)]

        def of_tokens(name: str) -> list[torch.Tensor]:
            picking = Picking(self._places, kept_rows & probe.keeps(name, role))
            return [to_host(picking.rows(self._computed(name, block))) for block in probe.blocks_of(name)]

        return BlockRows(
            key={name: of_keys(name) for name in KEY_TENSORS if name in names},
            token={name: of_tokens(name) for name in TOKEN_TENSORS if name in names},
        )

    def _computed(self, name: str, block: int) -> Computed:
        return Computed(self._own.rows[name][block], None if self._prefix is None else self._prefix.rows[name][block])

    def _finite(self, name: str, block: int) -> torch.Tensor:
        """Tell which rows hold finite numbers alone, (row,) bool on the host."""
        own = self._own.finite[name][block].cpu()
        if self._prefix is None:
            return own
        before = self._prefix.finite[name][block].cpu()
        if name not in KEY_TENSORS:
            return self._places.gather(own, before)
        # Rows of keys are the batch's already.
        in_prefix = torch.from_numpy(self._places.in_prefix)
        finite = own.clone()
        finite[in_prefix] &= before[torch.from_numpy(self._places.place)[in_prefix]]
        return finite

    def _key_rows(self, name: str, block: int) -> torch.Tensor:
        """Rows of keys, with those of queries within a prefix in place: (row, …, query)."""
        rows = self._own.rows[name][block]
        for query, (emptied, filled, place, slot) in self._copies:
            assert self._prefix is not None, "copies are of a prefix"
            before = self._prefix.rows[name][block]
            device = rows.device
            rows[emptied.at(device), ..., query] = 0.0
            rows[filled.at(device), ..., query] = before.movedim(-1, 1)[place.at(device), slot.at(device)]
        return rows


def _copies(places: RowPlaces, slots: np.ndarray) -> list[tuple[int, tuple[OnDevices, ...]]]:
    """Per query that lies in a prefix of any sample: rows to empty, rows to fill, and with which of the prefixes'."""
    found = []
    for query in np.flatnonzero((slots >= 0).any(axis=0)).tolist():
        slot = slots[places.sample, query]
        emptied = slot >= 0
        filled = emptied & places.in_prefix
        index = (np.flatnonzero(emptied), np.flatnonzero(filled), places.place[filled], slot[filled])
        found.append((query, tuple(OnDevices(torch.from_numpy(rows.astype(np.int64))) for rows in index)))
    return found


def _names(probe: Probe) -> list[str]:
    rows = ["attention", "attention_norm", "value_norm"] if probe.attention else []
    mass = ["attention_mass"] if probe.mass else []
    return [*rows, *mass, *(name for name in ("attention_output", "mlp_output") if getattr(probe, name))]
