"""How large a Parquet column can become when it is read, found from its pages' headers without decoding any of them.

A few kilobytes can hold terabytes: a page that is one repeated byte, a dictionary's long value in every row, a count of
values in two bytes. Each page says in its header (Thrift's compact protocol) how long it is and how many values it has,
and a reader allocates by that; so this looks at the headers first.
"""

from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["MalformedPageError", "decoded_bytes"]

_HEADER_BYTES = 2**16
_PAGES = 100_000
_PER_VALUE = 16  # an offset or a number, and what a level becomes
_DICTIONARY_PAGE = 2
# A value of any other encoding can repeat what went before it.
_ENCODINGS = {0: "plain", 2: "dictionary", 3: "run lengths", 8: "dictionary"}
_TYPE, _UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 1, 2, 3, 5, 7, 8
_NUM_VALUES, _ENCODING, _ENCODING_V2 = 1, 2, 4


class MalformedPageError(ValueError):
    """What lies where a page should be is none, or none that strata writes."""


class _Page(NamedTuple):
    """A page: where its content starts, its bytes there and decompressed, its number of values, is it a dictionary."""

    start: int
    compressed: int
    uncompressed: int
    values: int
    dictionary: bool


def decoded_bytes(column: pq.ColumnChunkMetaData, file: BufferedIOBase, limit: int) -> int:
    """Bound what reading a column chunk allocates.

    Parameters
    ----------
    column, file
        The column chunk, and the file that it lies in.
    limit
        Where to stop counting; no page that claims more is decompressed.

    Returns
    -------
    int
        Bytes, at most; anything above ``limit`` where there are more.

    Raises
    ------
    MalformedPageError
        When its pages cannot be followed, or are encoded in another way than strata's.
    """
    total = values = longest = 0
    for page in _pages(column, file):
        total += page.uncompressed
        values += 0 if page.dictionary else page.values
        if total > limit:
            break
        if page.dictionary and column.physical_type == "BYTE_ARRAY":
            longest = max(longest, _longest_value(column, file, page))
        if total + values * (_PER_VALUE + longest) > limit:
            break
    return total + values * (_PER_VALUE + longest)


def _pages(column: pq.ColumnChunkMetaData, file: BufferedIOBase) -> Iterator[_Page]:
    if not column.num_values:
        return
    place = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < place:
        place = column.dictionary_page_offset
    stop = place + column.total_compressed_size
    for _ in range(_PAGES):
        if place >= stop:
            return
        file.seek(place)
        fields, length = _Compact(file.read(_HEADER_BYTES)).header()
        page = _page(fields, place + length)
        yield page
        place = page.start + page.compressed
    raise MalformedPageError("has too many pages")


def _page(fields: dict[int, Any], start: int) -> _Page:
    sizes = fields.get(_COMPRESSED), fields.get(_UNCOMPRESSED)
    dictionary = fields.get(_TYPE) == _DICTIONARY_PAGE
    details = fields.get(_DICTIONARY if dictionary else _DATA, fields.get(_DATA_V2))
    if not all(isinstance(size, int) and size >= 0 for size in sizes) or not isinstance(details, dict):
        raise MalformedPageError("has a page without sizes")
    values = details.get(_NUM_VALUES)
    encoding = details.get(_ENCODING_V2 if _DATA_V2 in fields else _ENCODING)
    if not isinstance(values, int) or values < 0 or encoding not in _ENCODINGS:
        raise MalformedPageError("has a page of another encoding")
    return _Page(start, int(sizes[0] or 0), int(sizes[1] or 0), values, dictionary)


def _longest_value(column: pq.ColumnChunkMetaData, file: BufferedIOBase, page: _Page) -> int:
    """Length of the longest text of a dictionary: lengths (32 bits) and bytes, one after the other."""
    file.seek(page.start)
    content = file.read(page.compressed)
    if column.compression != "UNCOMPRESSED":
        try:
            codec = pa.Codec(column.compression.lower())
            content = codec.decompress(content, page.uncompressed, asbytes=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MalformedPageError(f"has a dictionary that cannot be decompressed ({error})") from error
    longest = place = 0
    for _ in range(page.values):
        if place + 4 > len(content):
            break
        length = int.from_bytes(content[place : place + 4], "little")
        longest = max(longest, min(length, len(content)))
        place += 4 + length
    return longest


class _Compact:
    """Reads one struct of Thrift's compact protocol: integers, and structs of them; all else is passed over."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def header(self) -> tuple[dict[int, Any], int]:
        """Return the struct's fields by number, and how many bytes it took."""
        try:
            return self._struct(0), self._place
        except IndexError as error:
            raise MalformedPageError("has a page without an end to its header") from error

    def _struct(self, depth: int) -> dict[int, Any]:
        if depth > 8:
            raise MalformedPageError("has a page whose header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            length = 8 if kind == 7 else self._varint()
            self._place += length
            return None
        if kind == 12:
            return self._struct(depth + 1)
        raise MalformedPageError("has a page whose header holds what none has")

    def _byte(self) -> int:
        value = self._content[self._place]
        self._place += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise MalformedPageError("has a page whose header holds a number without end")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
