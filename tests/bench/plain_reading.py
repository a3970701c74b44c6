"""Floors of reading a store: through zarr without arithmetic, in Python or in Rust, and nothing but Blosc decoding."""

import math
from typing import NamedTuple

import numpy as np
import zarr
from numcodecs import blosc

from analyses.execution import run_tasks
from analyses.part_task import open_array
from analyses.resources import Resources
from engine.store import Store, open_part

__all__ = ["ZARRS", "decode_shards", "read_through_zarr"]

ARRAY = "token/hidden_states"
_CHECKSUM = 4
_READ_BYTES = 16 * 2**20


class _Part(NamedTuple):
    url: str
    name: str


ZARRS = "zarrs.ZarrsCodecPipeline"


def read_through_zarr(store: Store, *, workers: int, pipeline: str | None = None) -> None:
    """Read all hidden states, one task per part, in stretches of the size that zarr reads fastest.

    Parameters
    ----------
    pipeline
        Path of the class that decodes, :data:`ZARRS` for the one in Rust; zarr's own where None.
    """
    with zarr.config.set({} if pipeline is None else {"codec_pipeline.path": pipeline}):
        _read_parts(store, workers)


def _read_parts(store: Store, workers: int) -> None:
    run_tasks(_read_part, [_Part(part.url, part.name) for part in store.parts], Resources(workers=workers))


def decode_shards(store: Store, *, workers: int) -> None:
    """Read the files of all hidden states and decode every chunk into one buffer per part, without zarr."""
    run_tasks(_decode_part, [_Part(part.url, part.name) for part in store.parts], Resources(workers=workers))


def _read_part(task: _Part) -> None:
    states = open_array(open_part(task.url, task.name), ARRAY)
    layers, tokens, _ = states.shape
    step = states.chunks[1] * max(1, _READ_BYTES // (math.prod(states.chunks) * states.dtype.itemsize))
    for layer in range(layers):
        for start in range(0, tokens, step):
            states[layer, start : start + step]


def _decode_part(task: _Part) -> None:
    part = open_part(task.url, task.name)
    states = open_array(part, ARRAY)
    chunk = np.empty(states.chunks, states.dtype)
    folder = f"{task.url}/parts/{task.name}.zarr/"
    prefix = f"{task.name}.zarr/{ARRAY}/c/"
    for name in part.manifest["files"]:
        if name.startswith(prefix):
            _decode_shard(folder + name.removeprefix(f"{task.name}.zarr/"), chunk, np.prod(states.shards) // chunk.size)


def _decode_shard(path: str, chunk: np.ndarray, chunks: int) -> None:
    with open(path, "rb") as file:
        content = file.read()
    index = np.frombuffer(content[-16 * chunks - _CHECKSUM : -_CHECKSUM], "<u8").reshape(chunks, 2)
    view = memoryview(content)
    for offset, length in index.tolist():
        blosc.decompress(view[offset : offset + length - _CHECKSUM], chunk)
