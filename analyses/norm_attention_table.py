"""Norm-attention as one tidy table over any number of stores."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS
from analyses.contextualization_table import STORE_COLUMNS
from analyses.identity import StoreIdentity
from analyses.norm_attention import MEASURES, NormAttention
from analyses.norm_attention_results import StoreAttention

__all__ = ["NORM_ATTENTION_SCHEMA", "to_tables"]

NORM_ATTENTION_SCHEMA = pa.schema(
    [
        *STORE_COLUMNS,
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("item_id", pa.string()),
        ("query", pa.string()),
        ("block", pa.int32()),
        ("role", pa.string()),
        ("attention", pa.float32()),
        ("attention_norm", pa.float32()),
        ("attention_norm_share", pa.float32()),
        ("attention_share", pa.float32()),
        ("sink_share", pa.float32()),
        ("sink_norm_share", pa.float32()),
        ("without_sinks", pa.bool_()),
    ]
)

_SAMPLES_AT_ONCE = 256  # rows of a table in memory follow this, not the store


def to_tables(results: Sequence[StoreAttention]) -> Iterator[pa.Table]:
    """Yield the tidy table in pieces: per sample each query, block after block, role after role."""
    for identity, result in results:
        for start in range(0, len(result.samples), _SAMPLES_AT_ONCE):
            yield _tidy(identity, result, slice(start, start + _SAMPLES_AT_ONCE))


def _tidy(identity: StoreIdentity, result: NormAttention, which: slice) -> pa.Table:
    values = {name: result.values[name][which] for name in MEASURES}
    shape = values["attention"].shape
    size = int(np.prod(shape))

    def along(axis: int, entries: NDArray[np.generic] | NDArray[np.object_]) -> NDArray[np.generic]:
        repeats, tiles = int(np.prod(shape[axis + 1 :])), int(np.prod(shape[:axis]))
        return np.tile(np.repeat(entries, repeats), tiles)

    columns = {
        **{name: pa.repeat(getattr(identity, name), size) for name in ("store", "model", "source")},
        **{
            name: pa.array(along(0, result.samples[name].to_numpy(dtype=object)[which]), pa.string())
            for name in SAMPLE_COLUMNS
        },
        "query": pa.array(along(1, np.array(result.queries, object)), pa.string()),
        "block": pa.array(along(2, result.blocks)),
        "role": pa.array(along(3, np.array(result.roles, object)), pa.string()),
        **{name: pa.array(array.ravel()) for name, array in values.items()},
        "without_sinks": pa.repeat(result.without_sinks, size),
    }
    return pa.table({name: columns[name] for name in NORM_ATTENTION_SCHEMA.names}, schema=NORM_ATTENTION_SCHEMA)
