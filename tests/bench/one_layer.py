"""One layer over all samples: what most questions ask for, against the layouts that people use without a store."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.cores import usable_cores
from engine.store import open_store
from tests.bench.own_process import own_processes
from tests.bench.peer_layouts import load_layer, map_layer, query_layer, save_rows, select_layer
from tests.bench.rows import Row, at_least
from tests.bench.stores import write_store
from tests.bench.timing import Times, take_turns
from tests.bench.usual_script import save_samples

__all__ = ["run"]

TORCH_THREADS = 2


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure float16 states as large as LLaVA-1.5-7B's, on Linux, which forgets a file on demand."""
    layers, dim, samples, rounds = (9, 512, 2, 2) if quick else (33, 4096, 24, 6)
    path = write_store(
        folder / "store",
        dtype="float16",
        parts=2,
        samples_per_part=samples // 2,
        layers=layers,
        image_tokens=576,
        dim=dim,
    )
    files = save_samples(path, folder / "samples", "float16")
    database = folder / "tensors.db"
    save_rows(files, database)
    layer = layers // 2
    store = partial(_read_layer, path, layer)
    files_ways = {
        "store": store,
        "files": partial(_joined, load_layer, files, layer),
        "mapped": partial(_joined, map_layer, files, layer),
    }
    table_ways = {
        "store": store,
        "rows": partial(_joined, select_layer, database, layer),
        "query": partial(_joined, query_layer, database, layer),
    }
    _check_same_states([*files_ways.values(), *table_ways.values()])
    what = f"one layer of {layers} over {samples} samples"
    with own_processes(files_ways, TORCH_THREADS) as processes:
        read = [*files, *(file for file in path.rglob("*") if file.is_file())]
        os.sync()  # what waits to be written stays in memory
        uncached = take_turns(processes, rounds=rounds, clear=lambda: _forget(read))
        yield from _rows_of_files(f"{what}, from the disk", uncached)
        yield from _rows_of_files(f"{what}, in the page cache", take_turns(processes, rounds=rounds))
    with own_processes(table_ways, TORCH_THREADS) as processes:
        yield from _rows_of_table(what, take_turns(processes, rounds=rounds))


def _rows_of_files(what: str, times: Times) -> Iterator[Row]:
    yield Row(
        f"{what}, against one torch.save per sample",
        times.ratio_of_best("files", "store"),
        f"rate of torch.load of every file, {times.best('files')}; {_here(times)}",
        at_least(10),
    )
    yield Row(
        f"{what}, against the same files mapped",
        times.ratio_of_best("mapped", "store"),
        f"rate of torch.load(…, mmap=True), {times.best('mapped')}; {_here(times)}",
    )


def _rows_of_table(what: str, times: Times) -> Iterator[Row]:
    yield Row(
        f"{what}, against one SQLite row per sample and layer",
        times.ratio_of_best("rows", "store"),
        f"rate of the loader that reads the table's torch.save blobs, {times.best('rows')}; {_here(times)}",
        at_least(20),
    )
    yield Row(
        f"{what}, against a query for its rows",
        times.ratio_of_best("query", "store"),
        f"rate of SELECT … WHERE layer = …, which the same table allows, {times.best('query')}; {_here(times)}",
    )


def _here(times: Times) -> str:
    return f"here {times.best('store')} with opening the store, on {usable_cores()} cores"


def _forget(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_layer(path: Path, layer: int) -> np.ndarray:
    """Open a store and read the states (token, dim) of a layer, all parts in one array."""
    return open_store(path).load_layer(layer).values


def _joined(load: Callable[[Any, int], list[torch.Tensor]], saved: Any, layer: int) -> np.ndarray:
    return torch.cat(load(saved, layer)).numpy()


def _check_same_states(ways: Sequence[Callable[[], np.ndarray]]) -> None:
    """A ratio means something only if all ways give the same."""
    states = ways[0]()
    for way in ways[1:]:
        np.testing.assert_array_equal(way(), states)
