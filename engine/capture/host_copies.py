"""Bringing captured rows to the host while the model goes on with the next batch.

Rows of a GPU are copied on a stream of their own into pinned memory, which the GPU reaches without the host's help.
Fresh pinned memory is slow to get, and the allocator rounds each request up to a power of two: rows are therefore
packed into large blocks of such a size, which the allocator hands out again once all rows in them are written.
"""

import math

import torch

from engine.errors import StrataError
from engine.models.checkpoint import first_line

__all__ = ["HostCopies"]

_FIRST_BYTES, _BLOCK_BYTES = 2**25, 2**28  # blocks double: those of a small part take little of the writer's queue
_PER_BLOCK = 4  # of rows of one size, which then leave a fifth of a block at most
_ALIGNMENT = 512


class HostCopies:
    """Copies of tensors on the host, under way until :meth:`wait`.

    Attributes
    ----------
    nbytes
        Bytes of the pinned blocks that were asked for, which stay until all rows in them are let go.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._next = _FIRST_BYTES
        self.nbytes = 0

    def bring(self, rows: torch.Tensor) -> torch.Tensor:
        """Start to copy a tensor.

        Parameters
        ----------
        rows
            On any device; what the device's current stream computes so far.

        Returns
        -------
        Tensor
            On the host, the same shape and dtype; its values are there after :meth:`wait`. A tensor of the host itself
            is returned as it is.
        """
        if rows.device.type != "cuda":
            return rows.cpu()
        host = self._place(rows)
        if rows.device not in self._streams:
            self._streams[rows.device] = torch.cuda.Stream(rows.device)
        stream = self._streams[rows.device]
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        # Without the device, leaving the stream would go back to GPU 0, and take memory there, for the context, too.
        with torch.cuda.device(rows.device), torch.cuda.stream(stream):
            host.copy_(rows, non_blocking=True)
        # The caller lets go of the rows before they are copied; their memory must not be given away until then.
        rows.record_stream(stream)
        return host

    def wait(self) -> None:
        """Wait until everything brought so far is there."""
        for stream in self._streams.values():
            stream.synchronize()

    def _place(self, rows: torch.Tensor) -> torch.Tensor:
        """Take room of the size of ``rows`` in pinned memory."""
        size = rows.nbytes
        if self._used + size > len(self._block):
            self._block = _pinned(max(self._next, 1 << (_PER_BLOCK * size - 1).bit_length()))
            self._next = min(2 * self._next, _BLOCK_BYTES)
            self._used = 0
            self.nbytes += self._block.nbytes
        room = self._block[self._used : self._used + size]
        self._used += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        return room.view(rows.dtype).view(rows.shape)


def _pinned(size: int) -> torch.Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise  # of work that the GPU was given before
        raise StrataError(
            f"the host has no {size:,} bytes of pinned memory for what a GPU brings ({first_line(error)}): give the "
            "process more memory, or run strata extract with a smaller --part-bytes or --batch-size; finished parts "
            "are kept."
        ) from error
