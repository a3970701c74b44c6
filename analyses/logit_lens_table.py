"""LogitLens as tidy tables over any number of stores: scores, and entropy with divergence from the last layer."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS
from analyses.contextualization_table import STORE_COLUMNS
from analyses.identity import StoreIdentity
from analyses.lens_scores import VARIANTS
from analyses.lens_trajectory import MEASURES, WHATS
from analyses.logit_lens import LogitLens
from analyses.logit_lens_results import StoreLens
from analyses.part_lens import COUNTS, UNKNOWN

__all__ = ["LOGIT_LENS_SCHEMA", "TRAJECTORY_SCHEMA", "to_tables", "to_trajectory_tables"]

_OF_LAYER = [
    *STORE_COLUMNS,
    ("sample_id", pa.string()),
    ("image_id", pa.string()),
    ("item_id", pa.string()),
    ("layer", pa.int32()),
    ("depth", pa.float64()),
]

LOGIT_LENS_SCHEMA = pa.schema(
    [
        *_OF_LAYER,
        ("variant", pa.string()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        *((name, pa.int32()) for name in COUNTS),
        ("references", pa.int32()),
        ("agreement", pa.float32()),
    ]
)
"""Scores and counts are null where the image has no captions; agreement is that of the layer in all variants."""

TRAJECTORY_SCHEMA = pa.schema([*_OF_LAYER, ("what", pa.string()), *((name, pa.float32()) for name in MEASURES)])
"""In nats; null where the sample has no such token."""

_Columns = dict[str, NDArray[Any] | tuple[int, NDArray[Any]]]
"""Values (sample, entry, layer), or an axis and values along it."""

_SAMPLES_AT_ONCE = 256  # rows of a table in memory follow this, not the store


def to_tables(results: Sequence[StoreLens]) -> Iterator[pa.Table]:
    """Yield scores in pieces: per sample each variant, layer after layer."""
    for identity, result in results:
        scores = {name: result.score(name) for name in ("precision", "recall")}
        for which in _slices(len(result.samples)):
            columns: _Columns = {
                "variant": (1, np.array(VARIANTS, object)),
                **{name: scores[name][:, which].swapaxes(0, 1) for name in scores},
                **{name: result.counts[name][:, which].swapaxes(0, 1) for name in COUNTS},
                "references": (0, result.references[which]),
                "agreement": np.repeat(result.agreement[which, np.newaxis], len(VARIANTS), axis=1),
            }
            yield _tidy(identity, result, which, columns, LOGIT_LENS_SCHEMA)


def to_trajectory_tables(results: Sequence[StoreLens]) -> Iterator[pa.Table]:
    """Yield entropy and divergence in pieces: per sample the image and the last text token, layer after layer."""
    for identity, result in results:
        assert result.trajectory is not None
        for which in _slices(len(result.samples)):
            values = dict(zip(MEASURES, result.trajectory[:, :, which].swapaxes(1, 2), strict=True))
            columns: _Columns = {"what": (1, np.array(WHATS, object)), **values}
            yield _tidy(identity, result, which, columns, TRAJECTORY_SCHEMA)


def _slices(samples: int) -> Iterator[slice]:
    for start in range(0, samples, _SAMPLES_AT_ONCE):
        yield slice(start, min(start + _SAMPLES_AT_ONCE, samples))


def _tidy(
    identity: StoreIdentity,
    result: LogitLens,
    which: slice,
    columns: _Columns,
    schema: pa.Schema,
) -> pa.Table:
    """Lay columns flat."""
    shape = next(values.shape for values in columns.values() if not isinstance(values, tuple))

    def along(axis: int, entries: NDArray[np.generic]) -> NDArray[np.generic]:
        repeats, tiles = int(np.prod(shape[axis + 1 :])), int(np.prod(shape[:axis]))
        return np.tile(np.repeat(entries, repeats), tiles)

    flat = {
        **{name: along(0, result.samples[name].to_numpy(dtype=object)[which]) for name in SAMPLE_COLUMNS},
        "layer": along(2, result.layers),
        "depth": along(2, result.layers / result.block_count),
        **{name: along(*values) if isinstance(values, tuple) else values.ravel() for name, values in columns.items()},
    }
    arrays = {name: _nullable(values, schema.field(name).type) for name, values in flat.items()}
    names = {name: pa.repeat(getattr(identity, name), int(np.prod(shape))) for name in ("store", "model", "source")}
    return pa.table({name: {**names, **arrays}[name] for name in schema.names}, schema=schema)


def _nullable(values: NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    """Make nulls of NaN, and of counts that are not known."""
    if pa.types.is_string(kind):
        return pa.array(values, kind)
    missing = np.isnan(values) if pa.types.is_floating(kind) else values == UNKNOWN
    return pa.array(values, kind, mask=missing)
