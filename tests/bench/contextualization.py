"""Contextualization from hidden states against plain reading, and against the script without a store."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from analyses.contextualization import analyze_store
from analyses.resources import Resources
from engine.store import open_store, summarise
from tests.bench.plain_reading import ZARRS, decode_shards, read_through_zarr
from tests.bench.rows import Row, at_least
from tests.bench.stores import write_store
from tests.bench.timing import take_turns
from tests.bench.usual_script import pair_matrix_cosines, save_samples

__all__ = ["run"]

WORKERS = 2


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes; files lie in the page cache."""
    for dtype in ("float16", "bfloat16"):
        yield from _rows(folder, dtype, quick)


def _rows(folder: Path, dtype: str, quick: bool) -> Iterator[Row]:
    layers, dim = (5, 1024) if quick else (33, 4096)
    path = write_store(
        folder / dtype, dtype=dtype, parts=2, samples_per_part=4, layers=layers, image_tokens=576, dim=dim
    )
    samples = save_samples(path, folder / f"{dtype}-samples", dtype)
    torch.set_num_threads(WORKERS)
    _check_same_numbers(path, samples)
    store = open_store(path)
    times = take_turns(
        {
            "analysis": lambda: analyze_store(open_store(path), resources=Resources(workers=WORKERS)),
            "zarr": lambda: read_through_zarr(store, workers=WORKERS),
            "zarrs": lambda: read_through_zarr(store, workers=WORKERS, pipeline=ZARRS),
            "blosc": lambda: decode_shards(store, workers=WORKERS),
            "script": lambda: pair_matrix_cosines(samples),
        },
        rounds=2 if quick else 5,
    )
    raw = next(array.raw_bytes for array in summarise(store).arrays if array.path == "token/hidden_states")
    here = f"at {times.rate('analysis', raw)} of raw states, {WORKERS} threads"
    yield Row(
        f"contextualization, {dtype}",
        times.ratio("zarr", "analysis"),
        f"rate of the same threads reading the same shards through zarr, {times.rate('zarr', raw)}; {here}",
        at_least(0.8),
    )
    yield Row(
        f"contextualization against zarrs, {dtype}",
        times.ratio("zarrs", "analysis"),
        f"the same through the codec pipeline in Rust that zarr can be given, {times.rate('zarrs', raw)}; {here}",
        at_least(0.8),
    )
    yield Row(
        f"bare Blosc decoding, {dtype}",
        times.ratio("zarr", "blosc"),
        f"the same rate of reading through zarr; {times.rate('blosc', raw)}",
    )
    yield Row(
        f"contextualization against the usual script, {dtype}",
        times.ratio("script", "analysis"),
        f"rate of one torch.save per sample, torch.load and full pair matrices, {times.rate('script', raw)}; {here}",
        at_least(3.0),
    )


def _check_same_numbers(store: Path, samples: list[Path]) -> None:
    """A ratio means something only if both ways compute the same."""
    analysed = analyze_store(open_store(store), resources=Resources(workers=WORKERS)).cosine
    np.testing.assert_allclose(analysed, pair_matrix_cosines(samples), atol=1e-4)
