"""Contextualization as one tidy table over any number of stores."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyses.contextualization import SAMPLE_COLUMNS, Contextualization
from analyses.contextualization_results import StoreResult
from analyses.identity import StoreIdentity

__all__ = ["CONTEXTUALIZATION_SCHEMA", "STORE_COLUMNS", "to_tables"]

STORE_COLUMNS = [(name, pa.string()) for name in ("store", "model", "source", "prompt_kind", "prompt_id")]

CONTEXTUALIZATION_SCHEMA = pa.schema(
    [
        *STORE_COLUMNS,
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("item_id", pa.string()),
        ("layer", pa.int32()),
        ("depth", pa.float64()),
        ("normed", pa.bool_()),
        ("pair", pa.string()),
        ("text_roles", pa.string()),
        ("self_pairs", pa.bool_()),
        ("adjustment", pa.string()),
        ("cosine", pa.float64()),
    ]
)

_SAMPLES_AT_ONCE = 256  # rows of a table in memory follow this, not the store


def to_tables(results: Sequence[StoreResult]) -> Iterator[pa.Table]:
    """Yield the tidy table in pieces: per sample each row of pairs, layer after layer, the normed layer last."""
    for identity, result in results:
        for start in range(0, len(result.samples), _SAMPLES_AT_ONCE):
            yield _tidy(identity, result, slice(start, start + _SAMPLES_AT_ONCE))


def _tidy(identity: StoreIdentity, result: Contextualization, which: slice) -> pa.Table:
    layers = np.concatenate([result.layers, result.layers[-1:]] if result.normed is not None else [result.layers])
    values = result.cosine[which]
    if result.normed is not None:
        values = np.concatenate([values, result.normed[which, np.newaxis]], axis=1)
    samples, points, rows = values.shape
    size = samples * points * rows

    def of_sample(column: str) -> pa.Array:
        return pa.array(np.repeat(result.samples[column].to_numpy(dtype=object)[which], points * rows), pa.string())

    def of_point(array: NDArray[np.generic]) -> pa.Array:
        return pa.array(np.tile(array, samples * rows))

    def of_row(array: list[object]) -> pa.Array:
        return pa.array(np.tile(np.repeat(np.array(array), points), samples).tolist())

    columns = {
        **{name: pa.repeat(getattr(identity, name), size) for name in ("store", "model", "source")},
        **{name: of_sample(name) for name in SAMPLE_COLUMNS},
        "layer": of_point(layers),
        "depth": of_point(layers / result.block_count),
        "normed": of_point(np.arange(points) >= len(result.layers)),
        "pair": of_row([row.pair for row in result.rows]),
        "text_roles": pa.repeat(",".join(result.text_roles), size),
        "self_pairs": of_row([row.self_pairs for row in result.rows]),
        "adjustment": pa.repeat(result.adjustment, size),
        "cosine": pa.array(values.transpose(0, 2, 1).ravel()),
    }
    return pa.table(columns, schema=CONTEXTUALIZATION_SCHEMA)
