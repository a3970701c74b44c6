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
_SMALL = 2**20  # bytes of a column that nobody needs to know more exactly
# A value of any other encoding can repeat what went before it.
_ENCODINGS = {0: "plain", 2: "dictionary", 3: "run lengths", 8: "dictionary"}
_TYPE, _UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 1, 2, 3, 5, 7, 8
_NUM_VALUES, _ENCODING, _ENCODING_V2 = 1, 2, 4


# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, 12
_DEEPEST = 8


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
            # No text of a dictionary is longer than the dictionary: often that is enough to know.
            few = column.num_values * page.uncompressed <= _SMALL
            longest = max(longest, page.uncompressed if few else _longest_value(column, file, page))
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
        fields, length = _read_header(file.read(_HEADER_BYTES))
        page = _page(fields, place + length)
        yield page
        place = page.start + page.compressed
    raise MalformedPageError("has too many pages")


def _page(fields: dict[int, Any], start: int) -> _Page:
    compressed, uncompressed = fields.get(_COMPRESSED, -1), fields.get(_UNCOMPRESSED, -1)
    dictionary = fields.get(_TYPE) == _DICTIONARY_PAGE
    details = fields.get(_DICTIONARY if dictionary else _DATA, fields.get(_DATA_V2))
    are_sizes = isinstance(compressed, int) and isinstance(uncompressed, int) and min(compressed, uncompressed) >= 0
    if not are_sizes or not isinstance(details, dict):
        raise MalformedPageError("has a page without sizes")
    values = details.get(_NUM_VALUES)
    encoding = details.get(_ENCODING_V2 if _DATA_V2 in fields else _ENCODING)
    if not isinstance(values, int) or values < 0 or encoding not in _ENCODINGS:
        raise MalformedPageError("has a page of another encoding")
    return _Page(start, compressed, uncompressed, values, dictionary)


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


def _read_header(content: bytes) -> tuple[dict[int, Any], int]:
    """Read one struct of Thrift's compact protocol: integers, and structs of them; all else is passed over.

    Returns
    -------
    dict, int
        The struct's fields by number, and how many bytes it took.
    """
    try:
        return _read_struct(content, 0, 0)
    except IndexError as error:
        raise MalformedPageError("has a page without an end to its header") from error


def _read_struct(content: bytes, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """Read the struct that begins at a place, and find where it ends.

    A store of many parts has some 50 headers in each of its tables, hence one function, with the integers of one byte
    in it.
    """
    if depth > _DEEPEST:
        raise MalformedPageError("has a page whose header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    value: Any
    while head := content[place]:
        place += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, place = _read_integer(content, place)
        if kind in _INTEGERS:
            byte = content[place]
            value, place = ((byte >> 1) ^ -(byte & 1), place + 1) if byte < 128 else _read_integer(content, place)
        elif kind == _STRUCT:
            value, place = _read_struct(content, place, depth + 1)
        elif kind in (_TRUE, _FALSE):
            value = kind == _TRUE
        elif kind == _BYTE:
            value, place = content[place], place + 1
        elif kind == _DOUBLE:
            value, place = None, place + 8
        elif kind == _BINARY:
            length, place = _read_varint(content, place)
            value, place = None, place + length
        else:
            raise MalformedPageError("has a page whose header holds what none has")
        fields[number] = value
    return fields, place + 1


def _read_integer(content: bytes, place: int) -> tuple[int, int]:
    value, place = _read_varint(content, place)
    return (value >> 1) ^ -(value & 1), place


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise MalformedPageError("has a page whose header holds a number without end")
