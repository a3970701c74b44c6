"""One layer over all samples: what most questions ask for, against the layouts that people use without a store."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import dask
import numpy as np
import torch

from engine.store import Store, open_store
from tests.bench.peer_layouts import load_layer, query_layer, save_rows, select_layer
from tests.bench.rows import Row, at_least
from tests.bench.stores import write_store
from tests.bench.timing import take_turns
from tests.bench.usual_script import save_samples

__all__ = ["run"]

WORKERS = 2


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure float16 states as large as LLaVA-1.5-7B's, on Linux, which forgets a file on demand."""
    layers, dim, samples = (9, 512, 2) if quick else (33, 4096, 24)
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
    store = open_store(path)
    _check_same_states(store, files, database, layer)
    torch.set_num_threads(WORKERS)
    ways = {
        "store": lambda: read_layer(open_store(path), layer),
        "files": lambda: torch.cat(load_layer(files, layer)),
        "rows": lambda: torch.cat(select_layer(database, layer)),
        "query": lambda: torch.cat(query_layer(database, layer)),
    }
    what = f"one layer of {layers} over {samples} samples"
    yield from _from_the_disk(ways, [*files, *(file for file in path.rglob("*") if file.is_file())], what, quick=quick)
    times = take_turns(ways, rounds=2 if quick else 6)
    here = f"here {times.best('store')} with opening the store, {WORKERS} threads"
    yield Row(
        f"{what}, in the page cache, against one torch.save per sample",
        times.ratio_of_best("files", "store"),
        f"rate of torch.load of every file, {times.best('files')}; {here}",
        at_least(10),
    )
    yield Row(
        f"{what} against one SQLite row per sample and layer",
        times.ratio_of_best("rows", "store"),
        f"rate of the loader that reads the table's torch.save blobs, {times.best('rows')}; {here}",
        at_least(20),
    )
    yield Row(
        f"{what} against a query for its rows",
        times.ratio_of_best("query", "store"),
        f"rate of SELECT … WHERE layer = …, which the same table allows, {times.best('query')}; {here}",
    )


def _from_the_disk(
    ways: Mapping[str, Callable[[], object]], files: Sequence[Path], what: str, *, quick: bool
) -> Iterator[Row]:
    """Measure with no file in memory, as most of a store of hundreds of gigabytes is not."""
    os.sync()  # what waits to be written stays in memory
    compared = {name: ways[name] for name in ("store", "files")}
    times = take_turns(compared, rounds=2 if quick else 4, clear=lambda: _forget(files))
    yield Row(
        f"{what}, from the disk, against one torch.save per sample",
        times.ratio_of_best("files", "store"),
        f"rate of torch.load of every file, {times.best('files')}, none in the page cache; here {times.best('store')}",
        at_least(10),
    )


def _forget(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_layer(store: Store, layer: int) -> np.ndarray:
    """States (token, dim) of a layer, all parts in one array."""
    with dask.config.set(num_workers=WORKERS):
        return np.asarray(store.hidden_states.sel(layer=layer).data.compute())


def _check_same_states(store: Store, files: list[Path], database: Path, layer: int) -> None:
    """A ratio means something only if all ways give the same."""
    states = read_layer(store, layer)
    for found in (load_layer(files, layer), select_layer(database, layer), query_layer(database, layer)):
        np.testing.assert_array_equal(torch.cat(found).numpy(), states)
