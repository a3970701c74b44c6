"""Writing shards front to back: each inner chunk is compressed on a thread, appended and hashed once on another.

zarr's own sharding codec would join all compressed chunks in memory before it writes, and the file would have to be
read again for its hash; measured on two cores, that takes 2.5 times as long. The files are plain ``sharding_indexed``
shards, index at the end.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np

from engine.cores import usable_cores
from engine.store.codecs import CHECKSUM_BYTES, checksum, encode_chunk
from engine.store.layout import INNER_CHUNK_BYTES, ChunkPlan
from engine.store.manifest import FileHash

__all__ = ["compression_bytes", "write_shards"]

_OPEN_SHARDS = 3
_WAITING_CHUNKS = 16  # of each
_SYNC_BYTES = 64 * 2**20


def write_shards(
    folder: Path,
    plan: ChunkPlan,
    dtype: str,
    slab: Callable[[int], np.ndarray],
    pool: Executor,
    *,
    sync: Callable[[Path], object],
) -> Iterator[tuple[Path, FileHash]]:
    """Write all shards of one array.

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
        Threads that compress.
    sync
        Called with a file that is to be made durable, from any thread: some times while it grows, so that the disk is
        busy from the start, and when it is written. It must not wait for the disk.

    Yields
    ------
    tuple of Path and FileHash
        Each file once it is written.

    Raises
    ------
    OSError
        When the disk is full or fails.
    """
    if plan.files == 0:
        return
    assert plan.shard is not None
    per_shard = tuple(long // step for long, step in zip(plan.shard, plan.inner, strict=True))
    chunks = _encoded(plan, dtype, slab, pool)
    unfinished: deque[_Shard] = deque()
    with ExitStack() as stack:
        for index in range(plan.files):
            path = folder.joinpath("c", str(index), *["0"] * (len(plan.shape) - 1))
            path.parent.mkdir(parents=True)
            shard = stack.enter_context(_Shard(path, per_shard, sync))
            for chunk in islice(chunks, math.prod(per_shard)):
                shard.append(chunk)
            unfinished.append(shard)
            if len(unfinished) == _OPEN_SHARDS:
                yield unfinished.popleft().finish()
        while unfinished:
            yield unfinished.popleft().finish()


def _blocks(plan: ChunkPlan, slab: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks as long as the inner chunk along the leading axis: one slab, or the whole array."""
    if plan.inner[0] == 1:
        for index in range(plan.shape[0]):
            yield slab(index)[np.newaxis]
    else:
        yield np.stack([slab(index) for index in range(plan.shape[0])])


def _encoded(plan: ChunkPlan, dtype: str, slab: Callable[[int], np.ndarray], pool: Executor) -> Iterator[np.ndarray]:
    """Encode the chunks of all blocks, in order.

    The next block is made while the last pieces of this one are compressed; the one before it is done by then, because
    its memory may become the next one's. Few pieces are under way at a time, because fresh memory costs as much as
    compressing into memory just freed.
    """
    pending: deque[tuple[int, Future[np.ndarray]]] = deque()
    for number, block in enumerate(_blocks(plan, slab)):
        for piece in _pieces(block, plan):
            if len(pending) >= 2 * compression_threads():
                yield pending.popleft()[1].result()
            pending.append((number, pool.submit(encode_chunk, piece, plan.inner, dtype)))
        while pending and pending[0][0] < number:
            yield pending.popleft()[1].result()
    while pending:
        yield pending.popleft()[1].result()


def _pieces(block: np.ndarray, plan: ChunkPlan) -> Iterator[np.ndarray]:
    """Cut a block along the part's axis."""
    cut = [axis for axis in range(block.ndim) if axis > 0 and plan.inner[axis] < block.shape[axis]]
    axis = cut[0] if cut else block.ndim - 1
    step = plan.inner[axis]
    for start in range(0, block.shape[axis], step):
        yield block[(slice(None),) * axis + (slice(start, start + step),)]


class _Shard:
    """One file: chunks in C order, then the index of (offset, length) pairs; a checksum follows each of them.

    Hashing and writing take as long as compressing does, so each open shard has a thread for them.

    Parameters
    ----------
    path
        The file, which must not exist.
    per_shard
        Number of chunks along each axis.
    sync
        As of `write_shards`.
    """

    def __init__(self, path: Path, per_shard: tuple[int, ...], sync: Callable[[Path], object]) -> None:
        self._path = path
        self._sync = sync
        self._unsynced = 0
        self._chunks = math.prod(per_shard)
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._lengths: list[int] = []
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def append(self, chunk: np.ndarray) -> None:
        """Write a chunk behind the others, soon; raises what writing one of them raised."""
        if len(self._waiting) >= _WAITING_CHUNKS:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, chunk))
        self._lengths.append(len(chunk) + CHECKSUM_BYTES)

    def finish(self) -> tuple[Path, FileHash]:
        """Wait for the chunks, write the index, and tell what the file holds."""
        while self._waiting:
            self._waiting.popleft().result()
        self._thread.shutdown()
        if len(self._lengths) != self._chunks:
            raise ValueError(f"shard {self._path} got {len(self._lengths)} of its {self._chunks} chunks")
        starts = np.cumsum([0, *self._lengths[:-1]])
        self._write(np.stack([starts, self._lengths], axis=1).astype("<u8").reshape(-1).view(np.uint8))
        size = self._file.tell()
        self._file.close()
        self._sync(self._path)
        return self._path, {"sha256": self._digest.hexdigest(), "bytes": size}

    def _write(self, encoded: np.ndarray) -> None:
        encoded.flags.writeable = False  # a checksum is only taken of what cannot change
        for piece in (encoded.data, checksum(encoded)):
            self._file.write(piece)
            self._digest.update(piece)
        self._unsynced += len(encoded)
        if self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            self._sync(self._path)


def compression_bytes() -> int:
    """Bytes under way while a part is compressed: pieces as cut, padded, encoded, and those that wait for the disk."""
    return (2 * compression_threads() * 3 + _OPEN_SHARDS * _WAITING_CHUNKS) * INNER_CHUNK_BYTES


def compression_threads() -> int:
    """Return how many threads compress one part: as many as this process has cores, at most eight."""
    return min(8, usable_cores())
