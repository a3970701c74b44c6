"""What a part keeps of the blocks: arrays on the token axis, and on the key axis.

The key axis holds, sample after sample, every position of the sample's own sequence, also where its token is not stored
or is another sample's, because each sample has its own attention over a shared prefix.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.capture.assemble import Segment
from engine.capture.batch import BatchItem
from engine.capture.block_rows import KEY_TENSORS, TOKEN_TENSORS, BlockRows
from engine.capture.kept import KeptPlaces, keep_of
from engine.capture.part_slabs import STORED_DTYPES, slabs
from engine.capture.place_coordinates import place_coordinate
from engine.capture.probe import Probe
from engine.capture.queries import query_positions
from engine.models.tokens import TokenLayout
from engine.store import (
    KEY_COORDINATES,
    Coordinate,
    PartArray,
    block_coordinate,
    query_coordinate,
    source_role_coordinate,
)
from engine.vocabulary import ROLES

__all__ = ["PartBlocks"]


class _Layout(NamedTuple):
    """Dimensions of a slab, its axes in the order of the captured pieces', and what it holds in words."""

    dims: tuple[str, ...]
    axes: tuple[int, ...]
    long_name: str


_LAYOUTS = {
    "attention": _Layout(
        ("query", "head", "key"), (2, 1, 0), "attention weight, the softmax of a query's scores over its keys"
    ),
    "attention_norm": _Layout(
        ("query", "key"), (1, 0), "norm of what a key gives to the query: its transformed values, weighted, all heads"
    ),
    "value_norm": _Layout(("head", "token"), (1, 0), "norm of the value, transformed by the head's output projection"),
    "attention_mass": _Layout(
        ("head", "token", "source_role"), (1, 0, 2), "attention that the token gives to all keys of a role"
    ),
    "attention_output": _Layout(("token", "dim"), (0, 1), "output of the block's attention"),
    "mlp_output": _Layout(("token", "dim"), (0, 1), "output of the block's feed-forward network"),
}
_OF_STATES = ("attention_output", "mlp_output")
_ALL = KeptPlaces(leading=None, rows=None, attributes={})


class PartBlocks:
    """Fills a part's arrays of the blocks, batch by batch.

    Parameters
    ----------
    probe, dtype, dim, heads, mantissa_bits
        As of :class:`engine.capture.part.PartCollector`; outputs of the blocks' halves are stored as states are.
    """

    def __init__(self, probe: Probe, *, dtype: str, dim: int, heads: int, mantissa_bits: int | None) -> None:
        self._probe = probe
        self._dtype = dtype
        self._mantissa_bits = mantissa_bits
        self._sizes = {"query": len(probe.queries), "head": heads, "dim": dim, "source_role": len(ROLES)}
        self._layouts: list[TokenLayout] = []
        self._wanted: list[np.ndarray] = []
        self._queries: list[np.ndarray] = []
        wanted = {
            "attention": probe.attention,
            "attention_norm": probe.attention,
            "value_norm": probe.attention,
            "attention_mass": probe.mass,
            "attention_output": probe.attention_output,
            "mlp_output": probe.mlp_output,
        }
        self._pieces: dict[str, list[list[torch.Tensor]]] = {
            name: [[] for _ in probe.blocks_of(name)] for name, chosen in wanted.items() if chosen
        }

    def add_sample(self, item: BatchItem) -> None:
        """Take over a usable sample, in the order in which they are stored."""
        self._layouts.append(item.layout)
        self._wanted.append(item.wanted)
        self._queries.append(query_positions(item.layout.role, self._probe.queries))

    def add_rows(self, rows: BlockRows) -> None:
        """Take over what one forward pass left of the blocks."""
        for name, blocks in {**rows.key, **rows.token}.items():
            for pieces, captured in zip(self._pieces[name], blocks, strict=True):
                pieces.append(captured)

    def arrays(self, role: np.ndarray) -> list[PartArray]:
        """List the arrays; their pieces are freed as they are written.

        Parameters
        ----------
        role
            (token,) role codes of the part's token axis.
        """
        sizes = {**self._sizes, "token": len(role), "key": sum(map(len, self._wanted))}
        attention = self._probe.blocks_of("attention")
        keys = [self._array(name, sizes, attention, _ALL) for name in KEY_TENSORS if name in self._pieces]
        tokens = [
            self._array(name, sizes, self._probe.blocks, keep_of(name, self._probe, role))
            for name in TOKEN_TENSORS
            if name in self._pieces
        ]
        return [*keys, *tokens]

    def _array(self, name: str, sizes: Mapping[str, int], blocks: Sequence[int], kept: KeptPlaces) -> PartArray:
        layout = _LAYOUTS[name]
        dims, shape = ("block", *layout.dims), (len(blocks), *(sizes[dim] for dim in layout.dims))
        attributes: dict[str, object] = {"long_name": layout.long_name, "units": "1"}
        dtype = self._dtype if name in _OF_STATES else "float32"
        if name in _OF_STATES:
            attributes["captured_dtype"] = dtype
        attributes |= kept.attributes
        return PartArray(
            path=f"{'key' if name in KEY_TENSORS else 'token'}/{name}",
            dims=dims,
            shape=shape,
            dtype=STORED_DTYPES[dtype],
            slab_dtype=dtype,
            slab=slabs(self._pieces[name], shape[1:], dtype, layout.axes, places=kept.leading, rows=kept.rows),
            attributes=attributes,
            mantissa_bits=self._mantissa_bits if name in _OF_STATES else None,
            kept=kept.lengths(dims, shape),
        )

    def coordinates(self, segments: Sequence[tuple[Segment, ...]]) -> list[Coordinate]:
        """List the coordinates that the arrays need.

        Parameters
        ----------
        segments
            Per sample its segments on the token axis.
        """
        probe = self._probe
        coordinates = [block_coordinate("token", probe.blocks)] if probe.of_blocks else []
        if probe.mass:
            coordinates.append(source_role_coordinate())
        if probe.attention:
            places = [_token_places(wanted, own) for wanted, own in zip(self._wanted, segments, strict=True)]
            token = np.concatenate([np.empty(0, dtype=np.int32), *places])
            attributes = {"long_name": "place of the key's token on the token axis; -1 where it is not stored"}
            coordinates += [
                Coordinate("key/token", ("key",), token, attributes),
                *(
                    place_coordinate("key", name, [getattr(layout, name) for layout in self._layouts])
                    for name in KEY_COORDINATES
                ),
                block_coordinate("key", probe.blocks_of("attention")),
                query_coordinate(probe.queries),
            ]
        return coordinates

    def columns(self) -> list[dict[str, Any]]:
        """Make the columns of the sample table that tell of keys.

        Returns
        -------
        list of dict
            Per sample ``key_start``, ``key_stop`` on the part's key axis, ``query_positions`` in the sample's own
            sequence; no columns without attention.
        """
        if not self._probe.attention:
            return [{} for _ in self._wanted]
        stops = np.cumsum([len(wanted) for wanted in self._wanted]).tolist()
        return [
            {"key_start": stop - len(wanted), "key_stop": stop, "query_positions": queries.tolist()}
            for stop, wanted, queries in zip(stops, self._wanted, self._queries, strict=True)
        ]


def _token_places(wanted: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Place of each position's token on the token axis, (position,) int32; −1 where it is not wanted."""
    places = np.full(len(wanted), -1, dtype=np.int32)
    places[wanted] = np.concatenate([np.empty(0, dtype=np.int32), *(np.arange(*segment) for segment in segments)])
    return places
