"""Reading Parquet tables of a store that may have been made to do harm.

Nothing is decoded that is larger than its file can explain.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from operator import itemgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import StrataError
from engine.store.limits import TABLE_BYTES, TABLE_EXPANSION
from engine.store.location import Location
from engine.store.parquet_pages import MalformedPageError, decoded_bytes

__all__ = ["StoredTable", "open_table", "read_table"]

_SMALL_BYTES = 2**20


class StoredTable(NamedTuple):
    """An opened table.

    Attributes
    ----------
    parquet, file
        The table, and the file that it lies in.
    origin
        What to call it in a message.
    columns
        Names of its columns that the schema knows, in the table's order.
    """

    parquet: pq.ParquetFile
    file: BufferedIOBase
    origin: str
    columns: tuple[str, ...]

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read columns.

        Raises
        ------
        StrataError
            When they are damaged, or claim more than the file can explain.
        """
        limit = TABLE_BYTES + TABLE_EXPANSION * self.file.seek(0, 2)
        with _naming(self.origin):
            total = 0
            metadata = self.parquet.metadata
            for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
                for column in (group.column(number) for number in range(group.num_columns)):
                    if column.path_in_schema.split(".")[0] in columns and total <= limit:
                        total += decoded_bytes(column, self.file, limit)
            if total > limit:
                raise StrataError(
                    f"{self.origin} claims more than {limit:,} bytes, {TABLE_EXPANSION} times its size: it was made "
                    "to do harm"
                )
            return self.parquet.read(list(columns), use_threads=False).replace_schema_metadata(None)


@contextmanager
def open_table(
    location: Location, relative: str, schema: pa.Schema, *, rows: int | None = None
) -> Iterator[StoredTable]:
    """Open a table.

    Parameters
    ----------
    location, relative
        The store, and the table's path in it.
    schema
        Columns of the format's newest version; the table may lack some, and others are ignored.
    rows
        How many rows it must have, where that is known.

    Raises
    ------
    StrataError
        When it is no such table.
    """
    origin = f"{location.url}/{relative}"
    with location.opened(relative) as opened:
        file = _at_hand(opened)
        with _naming(origin):
            parquet = pq.ParquetFile(file)
            stored = parquet.schema_arrow
        known = {field.name: field.type for field in schema}
        for field in stored:
            if field.name in known and not _are_alike(field.type, known[field.name]):
                raise StrataError(
                    f"{origin} has {field.type} in the column {field.name}, not {known[field.name]}: it is damaged or "
                    "was made to do harm"
                )
        if rows not in (None, parquet.metadata.num_rows):
            raise StrataError(f"{origin} has {parquet.metadata.num_rows} rows, {rows} are recorded: it is damaged")
        yield StoredTable(parquet, file, origin, tuple(name for name in stored.names if name in known))


def _at_hand(file: BufferedIOBase) -> BufferedIOBase:
    """Read a small file whole: then Arrow does not come back to Python for each of its columns."""
    length = file.seek(0, 2)
    file.seek(0)
    return pa.BufferReader(file.read()) if length <= _SMALL_BYTES else file


def _are_alike(stored: pa.DataType, known: pa.DataType) -> bool:
    return bool(stored.equals(known) or _plain(stored).equals(_plain(known)))


def _plain(kind: pa.DataType) -> pa.DataType:
    """Take off what harms nobody: widths of numbers and offsets, and the order of fields."""
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_signed_integer(kind):
        return pa.int64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct(sorted(((field.name, _plain(field.type)) for field in kind), key=itemgetter(0)))
    return kind


def read_table(location: Location, relative: str, schema: pa.Schema) -> pa.Table:
    """Read all columns of a table that a schema knows.

    Raises
    ------
    StrataError
        When it is no such table, lacks a column, or claims more than the file can explain.
    """
    with open_table(location, relative, schema) as table:
        lacking = [name for name in schema.names if name not in table.columns]
        if lacking:
            raise StrataError(f"{table.origin} lacks the column {lacking[0]}: it is damaged, see strata verify")
        return table.read(schema.names)


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    """Name the table where it cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"{origin} {error}" if isinstance(error, MalformedPageError) else f"{origin} is no table ({error})"
        raise StrataError(f"{what}: it is damaged or was made to do harm, see strata verify") from error
