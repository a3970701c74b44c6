"""Writing shards front to back: each layer or block is compressed, hashed and written by one thread, several at once.

So a chunk is hashed and copied while it is still in the cache of the core that compressed it, and threads wait for each
other only where they share a file; measured on two cores, handing every chunk from thread to thread took a sixth
longer. zarr's own sharding codec would join all compressed chunks in memory before it writes, and the file would have
to be read again for its hash. The files are plain ``sharding_indexed`` shards, index at the end.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import BinaryIO

import numpy as np

from engine.cores import part_threads
from engine.store.codecs import CHECKSUM_BYTES, checksum, encode_chunk
from engine.store.content import Selection, Values
from engine.store.layout import INNER_CHUNK_BYTES, SHARD_BYTES, ChunkPlan
from engine.store.manifest import FileHash

__all__ = ["Written", "write_shards", "writing_bytes"]

Written = tuple[Path, FileHash]

_SYNC_BYTES = 64 * 2**20
_COPIES = 6  # of a piece, three of them where it is rounded


def write_shards(
    folder: Path,
    plan: ChunkPlan,
    dtype: str,
    slab: Callable[[int], Values],
    pool: Executor,
    *,
    sync: Callable[[Path], object],
) -> list[Future[Written | None]]:
    """Have threads write all shards of one array.

    Parameters
    ----------
    folder
        The array's folder, which already holds its ``zarr.json``.
    plan
        How the array is cut.
    dtype
        Stored dtype.
    slab
        ``slab(i)`` is the array at leading index ``i``, shape ``plan.shape[1:]``; see ``PartArray.slab``.
    pool
        The threads. They must begin their work in the order in which they are given it.
    sync
        Called with a file that is to be made durable, from any thread: some times while it grows, so that the disk is
        busy from the start, and when it is written. It must not wait for the disk.

    Returns
    -------
    list of Future
        In order; the last one of each file results in the file and its hash, the others in None. The first that fails
        has the reason, ``OSError`` when the disk is full or fails; some after it may be cancelled for it.
    """
    if plan.files == 0:
        return []
    assert plan.shard is not None
    chunks = math.prod(long // step for long, step in zip(plan.shard, plan.inner, strict=True))
    blocks = plan.shard[0] if plan.inner[0] == 1 else 1
    writing = []
    for number in range(plan.files):
        path = folder.joinpath("c", str(number), *["0"] * (len(plan.shape) - 1))
        shard = _Shard(path, chunks, blocks, sync)
        for turn in range(blocks):
            encoded = _encoded(plan, dtype, slab, number * blocks + turn)
            writing.append(pool.submit(shard.put, turn, encoded))
    return writing


def _encoded(plan: ChunkPlan, dtype: str, slab: Callable[[int], Values], index: int) -> Iterator[np.ndarray]:
    """Encode the chunks of a leading index, or of the whole array where it is not cut along that axis."""
    if plan.inner[0] == 1:
        one = slab(index)
        for cut in _cuts(plan):
            yield encode_chunk(one[cut][np.newaxis], plan.inner, dtype)
    else:
        whole = np.stack([slab(each)[...] for each in range(plan.shape[0])])
        for cut in _cuts(plan):
            yield encode_chunk(whole if cut is ... else whole[(slice(None), *cut)], plan.inner, dtype)


def _cuts(plan: ChunkPlan) -> Iterator[Selection]:
    """Select each chunk of a leading index: only the part's axis is cut, or none."""
    lengths, steps = plan.shape[1:], plan.inner[1:]
    axis = next((axis for axis, step in enumerate(steps) if step < lengths[axis]), None)
    if axis is None:
        yield ...
        return
    for start in range(0, lengths[axis], steps[axis]):
        yield (*(slice(None),) * axis, slice(start, start + steps[axis]))


class _Shard:
    """One file: chunks in C order, then the index of (offset, length) pairs; a checksum follows each of them.

    Parameters
    ----------
    path
        The file, which must not exist.
    chunks, blocks
        How many chunks it has, and how many times some of them are put.
    sync
        As of `write_shards`.
    """

    def __init__(self, path: Path, chunks: int, blocks: int, sync: Callable[[Path], object]) -> None:
        self._path = path
        self._chunks = chunks
        self._blocks = blocks
        self._sync = sync
        self._unsynced = 0
        self._digest = hashlib.sha256()
        self._lengths: list[int] = []
        self._turn = 0
        self._failed = blocks  # the first block that did
        self._turns = threading.Condition()

    def put(self, turn: int, encoded: Iterable[np.ndarray]) -> Written | None:
        """Write the chunks of a block behind those of smaller numbers; after the last, tell what the file holds."""
        last = turn == self._blocks - 1
        try:
            if self._blocks > 1:
                encoded = list(encoded)  # compressed while other threads have their turns
            with self._turns:
                self._turns.wait_for(lambda: self._turn == turn or self._failed < turn)
                if self._failed < turn:
                    raise CancelledError
                self._append(encoded, last=last)
                self._turn += 1
                self._turns.notify_all()
        except BaseException:
            with self._turns:
                self._failed = min(self._failed, turn)
                self._turns.notify_all()
            raise
        return (self._path, {"sha256": self._digest.hexdigest(), "bytes": self._path.stat().st_size}) if last else None

    def _append(self, encoded: Iterable[np.ndarray], *, last: bool) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab" if self._turn else "xb") as file:
            for chunk in encoded:
                self._write(file, chunk)
                self._lengths.append(len(chunk) + CHECKSUM_BYTES)
            if last:
                if len(self._lengths) != self._chunks:
                    raise ValueError(f"shard {self._path} got {len(self._lengths)} of its {self._chunks} chunks")
                starts = np.cumsum([0, *self._lengths[:-1]])
                index = np.stack([starts, self._lengths], axis=1).astype("<u8")
                self._write(file, index.reshape(-1).view(np.uint8))
        if last:
            self._sync(self._path)

    def _write(self, file: BinaryIO, encoded: np.ndarray) -> None:
        encoded.flags.writeable = False  # a checksum is only taken of what cannot change
        for piece in (encoded.data, checksum(encoded)):
            file.write(piece)
            self._digest.update(piece)
        self._unsynced += len(encoded)
        if self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            self._sync(self._path)


def writing_bytes() -> int:
    """Bytes that threads hold while they write a part: a piece as cut, rounded, padded and encoded, encoded blocks."""
    return part_threads() * (_COPIES * INNER_CHUNK_BYTES + SHARD_BYTES)
