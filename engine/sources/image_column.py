"""Image columns of Parquet files: structs ``{bytes, path}``, where planning needs to know what is there.

The bytes themselves stay on disk: whether a row has any is said by the statistics of its row group, as long as all rows
of the group have them or none has. Only a mixed group is read, in small batches.
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from engine.sources.records import relative_uri
from engine.sources.shards import Shard

__all__ = ["Cell", "Embedded", "is_image_type", "is_text_type", "place_of", "read_cells"]

BATCH_ROWS = 64


class Cell(NamedTuple):
    """What one row has of an image: its path, and whether its bytes stand in the file."""

    path: str | None
    embedded: bool


class Embedded(NamedTuple):
    """Where the bytes of an image are: the row of a shard, counted from 0, in a struct column."""

    shard: Shard
    column: str
    row: int


def is_text_type(kind: pa.DataType) -> bool:
    """Tell whether a column holds text, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_image_type(kind: pa.DataType) -> bool:
    """Tell whether a column holds image structs: ``bytes`` that are binary, or a ``path`` that is text."""
    if not pa.types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return _is_binary_type(fields.get("bytes", pa.null())) or is_text_type(fields.get("path", pa.null()))


def _is_binary_type(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def read_cells(shard: Shard, column: str) -> list[Cell]:
    """Read what every row of a shard has in an image column; a blank path counts as none.

    Raises
    ------
    StrataError
        If the file is damaged.
    """
    fields = {field.name: field.type for field in shard.schema.field(column).type}
    rows = shard.metadata.num_rows
    paths: list[str | None] = [None] * rows
    if is_text_type(fields.get("path", pa.null())):
        paths = [value["path"] or None if value else None for value in shard.column(f"{column}.path")]
    embedded = [False] * rows
    if _is_binary_type(fields.get("bytes", pa.null())):
        embedded = _embedded(shard, f"{column}.bytes")
    return [Cell(*cell) for cell in zip(paths, embedded, strict=True)]


def _embedded(shard: Shard, leaf: str) -> list[bool]:
    """Say of each row whether it has bytes."""
    present: list[bool] = []
    for number in range(shard.metadata.num_row_groups):
        group = shard.metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        statistics = next(chunk for chunk in chunks if chunk.path_in_schema == leaf).statistics
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else None
        if nulls in (0, group.num_rows):
            present += [nulls == 0] * group.num_rows
        else:
            present += _embedded_in_group(shard, leaf, number)
    return present


def _embedded_in_group(shard: Shard, leaf: str, group: int) -> list[bool]:
    field = leaf.rpartition(".")[2]
    present: list[bool] = []
    try:
        for structs in shard.stream(leaf, group, BATCH_ROWS):
            # A struct that is null says nothing about what its field seems to hold.
            valid = pc.and_(structs.is_valid(), structs.field(field).is_valid())
            present += valid.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise shard.file.error(f"cannot be read in the column '{leaf}' ({error})") from error
    return present


def place_of(cell: Cell, embedded: Embedded, images: Path | None, *, name: str) -> tuple[str, Embedded | Path]:
    """Say under which path an image is known, and where it is read: in the shard, or below a folder.

    Parameters
    ----------
    cell
        What the row has.
    embedded
        The place of its bytes.
    images
        Folder that paths start from; None takes the folder of the shard.
    name
        The path of an embedded image that has none of its own.

    Raises
    ------
    ValueError
        If the row has neither bytes nor a path, or no bytes and a path that is absolute or leaves the folder; the
        message completes "… 'image' …".
    """
    if not cell.embedded:
        if cell.path is None:
            raise ValueError("has neither bytes nor a path")
        return relative_uri(cell.path), images or embedded.shard.file.path.parent
    try:
        return relative_uri(cell.path), embedded
    except ValueError:
        return name, embedded
