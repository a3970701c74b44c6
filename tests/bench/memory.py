"""Peak memory against its prediction: of contextualization, over a store 8 times as large too, and of extraction.

Every measurement is a fresh process; of several, the largest counts.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.rows import Row, at_most
from tests.bench.stores import write_store

__all__ = ["run"]

WORKERS = 2
PARTS, TIMES_AS_LARGE = 4, 8
MIB = 2**20


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes."""
    for dtype in ("float16", "bfloat16"):
        yield from _rows(folder, dtype, quick)
    yield _extraction_row(folder / "extraction", quick)


def _rows(folder: Path, dtype: str, quick: bool) -> Iterator[Row]:
    shape = {"samples_per_part": 2, "layers": 2, "image_tokens": 576}
    dim = 256 if quick else 4096
    warm_up = write_store(folder / f"{dtype}-warm", dtype=dtype, parts=2, dim=16, **shape)
    small = write_store(folder / f"{dtype}-small", dtype=dtype, parts=PARTS, dim=dim, **shape)
    large = write_store(folder / f"{dtype}-large", dtype=dtype, parts=PARTS * TIMES_AS_LARGE, dim=dim, **shape)
    rounds = 1 if quick else 3
    of_small, of_large = (_measure(warm_up, store, rounds) for store in (small, large))
    rise = max(of_small.rise, of_large.rise)
    yield Row(
        f"peak memory of contextualization, {dtype}",
        rise / of_large.predicted,
        f"what it predicts beyond the process itself, {of_large.predicted / MIB:.0f} MiB for {WORKERS} threads; "
        f"resident memory rose by {rise / MIB:.0f} MiB",
        at_most(1.0),
    )
    yield Row(
        f"peak memory over a store {TIMES_AS_LARGE} times as large, {dtype}",
        of_large.peak / of_small.peak,
        f"peak of the whole process over {PARTS} parts, {of_small.peak / MIB:.0f} MiB, of which the analysis "
        f"{of_small.rise / MIB:.0f} MiB; over {PARTS * TIMES_AS_LARGE} parts {of_large.rise / MIB:.0f} MiB",
        at_most(1.1),
    )


def _extraction_row(folder: Path, quick: bool) -> Row:
    dim, blocks, images = (64, 2, 20) if quick else (256, 24, 200)
    measured = _run("memory_of_extraction", folder, dim, blocks, images)
    rise = measured["peak"] - measured["before"]
    return Row(
        "peak memory of extraction",
        rise / measured["predicted"],
        f"what estimate predicts beside the model, {measured['predicted'] / MIB:.0f} MiB; resident memory rose by "
        f"{rise / MIB:.0f} MiB (bfloat16, width {dim}, {blocks} blocks, {images} images in 5 parts)",
        at_most(1.0),
    )


class _Measured(NamedTuple):
    peak: int
    rise: int
    predicted: int


def _measure(warm_up: Path, store: Path, rounds: int) -> _Measured:
    runs = [_run("memory_of_analysis", warm_up, store, WORKERS) for _ in range(rounds)]
    return _Measured(
        max(run["peak"] for run in runs),
        max(run["peak"] - run["before"] for run in runs),
        runs[0]["predicted"],
    )


def _run(module: str, *arguments: object) -> dict[str, int]:
    command = [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)]
    measured: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured
