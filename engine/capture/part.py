"""Collects the captures of one part and lays them out as the store wants them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from engine.capture.assemble import Segment, StoredSample, lay_token_axis
from engine.capture.batch import BatchCapture, BatchItem
from engine.capture.kept import keep_of
from engine.capture.part_blocks import PartBlocks
from engine.capture.part_lens import PartLens
from engine.capture.part_slabs import STORED_DTYPES, slabs
from engine.capture.place_coordinates import place_coordinate
from engine.capture.pooling import Pooled
from engine.capture.probe import Probe
from engine.models.prepare import PreparedImage
from engine.models.tokens import TokenLayout
from engine.prompts import Prompt
from engine.sources import ImageRecord, LoadedImage
from engine.store import (
    PART_SAMPLES_SCHEMA,
    THUMBNAIL_SAMPLES_SCHEMA,
    TOKEN_COORDINATES,
    BadSample,
    Coordinate,
    PartArray,
    PartContent,
    layer_coordinate,
    role_coordinate,
)
from engine.vocabulary import ROLES

__all__ = ["PartCollector", "SampleSource", "batch_item"]


class SampleSource(NamedTuple):
    """Where one sample comes from: its image (and that image's number), and which prompt of the plan.

    ``thumbnail`` is a small copy of the image, where these are stored.
    """

    image_number: int
    record: ImageRecord
    image: LoadedImage
    prepared: PreparedImage
    prompt_index: int
    prompt: Prompt
    thumbnail: bytes | None

    @property
    def sample_id(self) -> str:
        """``image_id/prompt_id``."""
        return f"{self.record.image_id}/{self.prompt.prompt_id}"


def batch_item(source: SampleSource, roles: Sequence[int] | None) -> BatchItem:
    """Turn a sample into what the model gets.

    Parameters
    ----------
    source
        The sample.
    roles
        Role codes to store; all where None.
    """
    prepared, index = source.prepared, source.prompt_index
    layout = prepared.layouts[index]
    return BatchItem(
        sample_id=source.sample_id,
        image=source.image_number,
        layout=layout,
        pixel_values=prepared.pixel_values,
        side_text=prepared.side_texts[index],
        wanted=np.ones(len(layout), dtype=bool) if roles is None else np.isin(layout.role, roles),
        prefix=prepared.prefix,
    )


class PartCollector:
    """Fills one part, batch by batch.

    Parameters
    ----------
    number
        The part's number.
    probe
        What is captured.
    dtype
        dtype of the residual stream: ``float16``, ``bfloat16`` or ``float32``.
    dim
        Its width.
    heads
        Attention heads of a block.
    mantissa_bits
        Rounding of the stored states, or None.
    lens_ranks
        Vocabulary pieces per token and layer of the lens; 0 without it.
    thumbnails
        Whether thumbnails are stored.
    """

    def __init__(
        self,
        number: int,
        probe: Probe,
        *,
        dtype: str,
        dim: int,
        heads: int,
        mantissa_bits: int | None,
        lens_ranks: int,
        thumbnails: bool,
    ) -> None:
        self._number = number
        self._probe = probe
        self._dtype = dtype
        self._dim = dim
        self._mantissa_bits = mantissa_bits
        self._schema = THUMBNAIL_SAMPLES_SCHEMA if thumbnails else PART_SAMPLES_SCHEMA
        self._began = time.perf_counter()
        # Pixels are not kept: a part of pooled states alone can span thousands of images.
        self._stored: list[StoredSample] = []
        self._images_kept: set[int] = set()
        self._rows: list[dict[str, Any]] = []
        self._tokens: list[dict[str, np.ndarray]] = []
        self._states: list[list[torch.Tensor]] = [[] for _ in probe.stored_layers]
        self._lens = PartLens(probe, lens_ranks)
        self._pooled: dict[str, list[np.ndarray]] = {name: [] for name in Pooled._fields}
        self._blocks = PartBlocks(probe, dtype=dtype, dim=dim, heads=heads, mantissa_bits=mantissa_bits)
        self._bad: list[BadSample] = []

    @property
    def images_kept(self) -> frozenset[int]:
        """Numbers of the images that have a stored sample, and so their prefix."""
        return frozenset(self._images_kept)

    def add_bad(self, sample_id: str, reason: str) -> None:
        """Record a sample that cannot be stored."""
        self._bad.append(BadSample(sample_id, reason))

    def add_batch(self, sources: Sequence[SampleSource], items: Sequence[BatchItem], capture: BatchCapture) -> None:
        """Take over what one forward pass left."""
        for source, item, kept, problem in zip(sources, items, capture.kept, capture.problems, strict=True):
            if problem is not None:
                self.add_bad(item.sample_id, problem)
                continue
            prefix, own = (int(tokens.sum()) for tokens in np.split(item.wanted, [item.prefix]))
            self._stored.append(StoredSample(item.image, prefix, own))
            self._rows.append(_sample_row(source, first=item.image not in self._images_kept))
            self._images_kept.add(item.image)
            self._tokens.append(_token_values(item.layout, kept))
            self._blocks.add_sample(item)
        for layer, rows in zip(self._states, capture.states, strict=False):
            layer.append(rows)
        self._lens.add_rows(capture.pieces)
        if capture.pooled is not None:
            for name, values in capture.pooled._asdict().items():
                if values is not None:
                    self._pooled[name].append(values)
        if capture.block_rows is not None:
            self._blocks.add_rows(capture.block_rows)

    def finish(self, run: Mapping[str, object]) -> PartContent:
        """Lay out the part; the collector is used up, its states are freed as they are written."""
        axis = lay_token_axis(self._stored)
        coordinates = self._coordinates()
        role = next(coordinate.values for coordinate in coordinates if coordinate.path == "token/role")
        return PartContent(
            number=self._number,
            arrays=(
                *self._state_arrays(role),
                *self._lens.arrays(role),
                *self._pooled_arrays(),
                *self._blocks.arrays(role),
            ),
            coordinates=(*coordinates, *self._blocks.coordinates(axis.segments)),
            samples=_sample_table(self._rows, axis.segments, self._blocks.columns(), self._schema),
            bad_samples=tuple(self._bad),
            run=run,
            seconds=time.perf_counter() - self._began,
        )

    def _coordinates(self) -> list[Coordinate]:
        coordinates = [
            place_coordinate("token", name, [tokens[name] for tokens in self._tokens]) for name in TOKEN_COORDINATES
        ]
        if self._probe.token_layers:
            coordinates.append(layer_coordinate("token", self._probe.token_layers))
        if self._probe.pooled:
            coordinates += [layer_coordinate("sample", self._probe.layers), role_coordinate("sample")]
        return coordinates

    def _state_arrays(self, role: np.ndarray) -> list[PartArray]:
        if not self._probe.residual:
            return []
        layers, kept = len(self._probe.stored_layers), keep_of("hidden_states", self._probe, role)
        return [
            PartArray(
                path="token/hidden_states",
                dims=("layer", "token", "dim"),
                shape=(layers, len(role), self._dim),
                dtype=STORED_DTYPES[self._dtype],
                slab_dtype=self._dtype,
                slab=slabs(self._states, (len(role), self._dim), self._dtype, rows=kept.rows),
                attributes={
                    "long_name": "residual stream",
                    "units": "1",
                    "captured_dtype": self._dtype,
                    **kept.attributes,
                },
                mantissa_bits=self._mantissa_bits,
                kept=kept.lengths(("layer", "token", "dim"), (layers, len(role), self._dim)),
            )
        ]

    def _pooled_arrays(self) -> list[PartArray]:
        if not self._probe.pooled:
            return []
        layers, roles = len(self._probe.layers), len(ROLES)

        def joined(name: str, empty: tuple[int, ...], sample_axis: int, dtype: str) -> np.ndarray:
            # Batches are given up array by array, so that joining never holds all of them twice.
            pieces, self._pooled[name] = self._pooled[name], []
            return np.concatenate(pieces, axis=sample_axis) if pieces else np.empty(empty, dtype=dtype)

        dims = ("layer", "role", "sample", "dim")
        unit = {"units": "1"}
        tables: list[tuple[str, tuple[str, ...], np.ndarray, dict[str, object]]] = [
            (
                name,
                dims,
                joined(name, (layers, roles, 0, self._dim), 2, "float32"),
                {"long_name": long_name, **unit},
            )
            for name, long_name in (
                ("unit_mean", "mean of the unit vectors of a role's tokens"),
                ("mean", "mean of the states of a role's tokens"),
            )
        ]
        if self._probe.block_count in self._probe.layers:
            normed = joined("normed_unit_mean", (roles, 0, self._dim), 1, "float32")
            long_name = "mean of the unit vectors of a role's tokens, last layer after the final norm"
            tables.append(("normed_unit_mean", dims[1:], normed, {"long_name": long_name, **unit}))
        counts = joined("token_count", (roles, 0), 1, "int32")
        tables.append(("token_count", dims[1:3], counts, {"long_name": "tokens of a role", **unit}))
        return [
            PartArray(f"sample/{name}", names, values.shape, str(values.dtype), values.__getitem__, attributes)
            for name, names, values, attributes in tables
        ]


def _token_values(layout: TokenLayout, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Coordinates of the tokens stored with a sample, (row,) int32 each."""
    values = {name: getattr(layout, name)[kept] for name in TOKEN_COORDINATES if name != "position"}
    return {**values, "position": np.flatnonzero(kept).astype(np.int32)}


def _sample_row(source: SampleSource, *, first: bool) -> dict[str, Any]:
    """Make a sample's row of the table; the first of its image in the part brings the thumbnail."""
    return {
        "sample_id": source.sample_id,
        "image_id": source.record.image_id,
        "item_id": source.record.item_id or source.record.image_id,
        "image_uri": source.record.uri,
        "image_sha256": source.image.sha256,
        "width": source.image.width,
        "height": source.image.height,
        "prompt_id": source.prompt.prompt_id,
        "prompt_kind": source.prompt.kind,
        "prompt": source.prompt.text,
        "references": list(source.record.references),
        "grids": [grid._asdict() for grid in source.prepared.grids],
        "thumbnail": source.thumbnail if first else None,
    }


def _sample_table(
    rows: Sequence[dict[str, Any]],
    segments: Sequence[tuple[Segment, ...]],
    keys: Sequence[dict[str, Any]],
    schema: pa.Schema,
) -> pa.Table:
    with_segments = [
        {**row, "segments": [segment._asdict() for segment in own], **of_keys}
        for row, own, of_keys in zip(rows, segments, keys, strict=True)
    ]
    return pa.Table.from_pylist(with_segments, schema=schema)
