"""Reads images out of Parquet files, a few row groups in memory and never a whole file.

A row group of ordinary size is decoded at once, because the next images often lie in it; the part of a large one that
holds the row is reached by streaming over what comes before. What was decoded last is kept, up to a limit in bytes, and
shared by all threads; each reading opens the file for itself. So memory stays below the limit plus one block for each
thread that is reading (a file written in pages that are larger than a block costs the size of its pages).
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import pyarrow as pa

from engine.sources.image_column import Embedded
from engine.sources.images import ImageFolder
from engine.sources.records import ImageRecord, UnreadableImage

__all__ = ["ParquetImages"]

BLOCK_BYTES = 32 * 2**20
CACHE_BYTES = 128 * 2**20


class Block(NamedTuple):
    """Decoded images of consecutive rows of a row group, the first row counted from 0 within the group."""

    start: int
    images: pa.Array


class ParquetImages:
    """The images of Parquet files, embedded in them or named by them.

    Parameters
    ----------
    name
        The file or folder, for messages.
    places
        Where each image is, by image id: in a row of a shard, or below a folder at its ``uri``.
    block_bytes
        What is decoded at once, as far as row groups are larger.
    cache_bytes
        What is kept decoded.
    """

    def __init__(
        self,
        name: Path,
        places: Mapping[str, Embedded | Path],
        *,
        block_bytes: int = BLOCK_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._name = name
        self._places = places
        self._block_bytes = block_bytes
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[str, str, int, int], Block] = OrderedDict()
        self._lock = Lock()

    def __str__(self) -> str:
        return str(self._name)

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded images that are kept."""
        with self._lock:
            return self._kept_bytes()

    def read(self, record: ImageRecord) -> bytes:
        """Return the encoded image; see `ImageReader`."""
        place = self._places[record.image_id]
        if isinstance(place, Path):
            return ImageFolder(place).read(record)
        try:
            data = self._read_row(place)
        except FileNotFoundError as error:
            raise UnreadableImage(f"{self}/{record.uri}", "no such file") from error
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImage(f"{self}/{record.uri}", f"damaged row group of {place.shard.name}") from error
        if data is None:
            raise UnreadableImage(f"{self}/{record.uri}", f"row {place.row} of {place.shard.name} lost its bytes")
        return data

    def _read_row(self, place: Embedded) -> bytes | None:
        metadata = place.shard.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        starts = list(accumulate(sizes, initial=0))
        group = bisect_right(starts, place.row) - 1
        row = place.row - starts[group]
        rows = max(1, sizes[group] * self._block_bytes // max(_column_bytes(place, group), 1))
        block = self._block(place, group, row, rows)
        data: bytes | None = block.images[row - block.start].as_py()
        return data

    def _block(self, place: Embedded, group: int, row: int, rows: int) -> Block:
        """Take the block of ``rows`` rows that holds ``row`` from what is kept, or decode it."""
        key = (place.shard.name, place.column, group, row // rows)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        start = 0
        for structs in place.shard.stream(f"{place.column}.bytes", group, rows):
            if row < start + len(structs):
                block = Block(start, structs.field("bytes"))
                self._keep(key, block)
                return block
            start += len(structs)
        raise pa.ArrowInvalid(f"row group {group} of {place.shard.name} has only {start} rows")

    def _keep(self, key: tuple[str, str, int, int], block: Block) -> None:
        with self._lock:
            self._cache[key] = block
            while self._cache and self._kept_bytes() > self._cache_bytes:
                self._cache.popitem(last=False)

    def _kept_bytes(self) -> int:
        return sum(block.images.get_total_buffer_size() for block in self._cache.values())


def _column_bytes(place: Embedded, group: int) -> int:
    """Bytes of a row group's images before compression."""
    columns = place.shard.metadata.row_group(group)
    chunks = (columns.column(index) for index in range(columns.num_columns))
    path = f"{place.column}.bytes"
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == path)
