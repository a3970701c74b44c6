"""Reading one ``sharding_indexed`` file: its index, and its chunks one by one, checked before they are decoded."""

import os
from io import BufferedIOBase

import numpy as np
from numcodecs import blosc

from engine.errors import StrataError
from engine.store.codecs import CHECKSUM_BYTES, checksum, states_sizes

__all__ = ["ShardFile", "most_encoded_bytes"]

_ENTRY_BYTES = 16  # of the index: offset and length of one chunk


def most_encoded_bytes(decoded: int) -> int:
    """Bytes of the longest chunk, with its checksum, that decodes to so many."""
    return decoded + blosc.MAX_OVERHEAD + CHECKSUM_BYTES


class ShardFile:
    """An open file of so many chunks, each followed by its checksum, and the index at its end.

    Parameters
    ----------
    file
        Its bytes.
    address
        How messages name it.
    count
        Number of chunks.

    Raises
    ------
    StrataError
        When it is shorter than its index, or that is damaged.
    """

    def __init__(self, file: BufferedIOBase, address: str, count: int) -> None:
        self._file = file
        self._address = address
        size = file.seek(0, os.SEEK_END)
        end = size - count * _ENTRY_BYTES - CHECKSUM_BYTES
        if end < 0:
            raise self._damaged("is cut short")
        index = self._read(end, np.empty(size - end, np.uint8)).view("<u8").reshape(count, 2)
        if (index > end).any() or (index.sum(axis=1) > end).any():
            raise self._damaged("lacks a chunk")
        self._entries: list[list[int]] = index.tolist()

    def decode(self, number: int, encoded: np.ndarray, decoded: np.ndarray) -> None:
        """Read a chunk and decode it; most of the time without the GIL.

        Parameters
        ----------
        number
            Of the chunk, in the order of the index.
        encoded
            (byte,) uint8 to read into, `most_encoded_bytes` long; overwritten.
        decoded
            The chunk's values, contiguous; overwritten.

        Raises
        ------
        StrataError
            When the chunk is damaged, or is one of another size.
        """
        start, length = self._entries[number]
        if length > len(encoded):
            raise self._damaged("has a chunk of another size")
        content = self._read(start, encoded[:length])
        if not states_sizes(content, decoded.nbytes):
            raise self._damaged("has a chunk of another size")
        blosc.decompress(content, decoded)

    def _read(self, start: int, into: np.ndarray) -> np.ndarray:
        """Fill ``into`` from ``start`` on; return it without the checksum at its end, which must be right."""
        self._file.seek(start)
        if self._file.readinto(into.data) != len(into):
            raise self._damaged("is cut short")
        into.flags.writeable = False  # the checksum is only taken of what cannot change
        content, stored = into[:-CHECKSUM_BYTES], into[-CHECKSUM_BYTES:]
        if checksum(content) != stored.tobytes():
            raise self._damaged("has a wrong checksum")
        return content

    def _damaged(self, what: str) -> StrataError:
        return StrataError(
            f"{self._address} {what}: its bytes are damaged. strata verify names every such file; strata repair "
            "removes the part, and strata extract does it again"
        )
