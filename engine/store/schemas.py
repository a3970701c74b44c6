"""Columns of a store's Parquet tables."""

import pyarrow as pa

__all__ = ["PART_SAMPLES_SCHEMA", "PLAN_SCHEMA", "THUMBNAIL_SAMPLES_SCHEMA", "VOCABULARY_SCHEMA"]

PLAN_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("prompt_id", pa.string()),
        ("part", pa.int32()),
    ]
)
"""``plan.parquet``: one row per planned sample, in plan order."""

VOCABULARY_SCHEMA = pa.schema(
    [
        ("token_id", pa.int32()),
        ("piece", pa.string()),
        ("kind", pa.string()),
        ("word_start", pa.bool_()),
    ]
)
"""``vocab.parquet``: one row per row of the unembedding; kind is normal, special, byte or padding."""

_SEGMENT = pa.struct([("start", pa.int64()), ("stop", pa.int64())])
_GRID = pa.struct(
    [
        ("rows", pa.int32()),
        ("cols", pa.int32()),
        ("x0", pa.float64()),
        ("y0", pa.float64()),
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        ("thumbnail", pa.bool_()),
    ]
)

PART_SAMPLES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image_id", pa.string()),
        ("item_id", pa.string()),
        ("image_uri", pa.string()),
        ("image_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("prompt_id", pa.string()),
        ("prompt_kind", pa.string()),
        ("prompt", pa.string()),
        ("references", pa.list_(pa.string())),
        ("segments", pa.list_(_SEGMENT)),
        ("grids", pa.list_(_GRID)),
        ("key_start", pa.int64()),
        ("key_stop", pa.int64()),
        ("query_positions", pa.list_(pa.int32())),
    ]
)
"""``parts/NNNNNNNN.parquet``: one row per stored sample.

Segments count on the part's own token axis, keys on its key axis. ``query_positions`` are in the sample's own sequence,
-1 where it has no such query. The last three are null where no attention is kept.
"""

THUMBNAIL_SAMPLES_SCHEMA = PART_SAMPLES_SCHEMA.append(pa.field("thumbnail", pa.binary()))
"""The same with thumbnails: a JPEG in the first sample of each image in the part, null in its others."""
