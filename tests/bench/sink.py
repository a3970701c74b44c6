"""Writing alone: a fake producer hands over raw states of whole parts, against ``torch.save`` and fsync of the same.

Both write to the same disk and end when the bytes are durable. The sink compresses, hashes and commits.
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from engine.capture.part_slabs import STORED_DTYPES
from engine.capture.sink import QUEUE_BYTES, BackgroundSink
from engine.plan import PART_BYTES
from engine.store import PartContent, write_part
from tests.bench.rows import NO_GOAL, Goal, Row, at_least
from tests.bench.states import make_states
from tests.bench.stores import states_content
from tests.bench.timing import take_turns

__all__ = ["run"]

PARTS = 2
LAYERS, DIM = 33, 4096
SMALL = 2**28


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes, in parts of the size that extraction makes by default, and in small ones."""
    layers, dim = (3, 512) if quick else (LAYERS, DIM)
    usual, small = (2**22, 2**20) if quick else (PART_BYTES, SMALL)
    states = make_states(0, layers=layers, tokens=usual // (2 * layers * dim), dim=dim)
    for dtype in ("float16", "bfloat16"):
        # A part counts its stored bytes.
        per_token = np.dtype(STORED_DTYPES[dtype]).itemsize * layers * dim
        of_usual, of_small = (
            torch.from_numpy(states[:, : size // per_token]).to(getattr(torch, dtype)) for size in (usual, small)
        )
        yield _row(folder, of_usual, f"writing parts of the usual size, {dtype}", at_least(1.0), quick=quick)
        yield _row(folder, of_small, f"writing small parts, {dtype}", NO_GOAL, quick=quick)


def _row(folder: Path, raw: torch.Tensor, name: str, goal: Goal, *, quick: bool) -> Row:
    target = folder / "written"
    times = take_turns(
        {"sink": partial(_sink, target, raw), "save": partial(_save, target, raw)},
        rounds=2 if quick else 4,
        clear=partial(shutil.rmtree, target),
    )
    size = PARTS * raw.nbytes
    return Row(
        name,
        times.ratio("save", "sink"),
        f"rate of torch.save and fsync of the same bytes, {times.rate('save', size)} of raw states; the sink takes "
        f"{times.rate('sink', size)} (parts of {raw.nbytes / 1e9:.2g} GB of raw states)",
        goal,
    )


def _save(folder: Path, raw: torch.Tensor) -> None:
    folder.mkdir()
    for number in range(PARTS):
        with (folder / f"{number}.pt").open("wb") as file:
            torch.save(raw, file)
            file.flush()
            os.fsync(file.fileno())


def _sink(store: Path, raw: torch.Tensor) -> None:
    store.mkdir()
    with BackgroundSink(lambda content: write_part(store, content, plan_sha256="0" * 64), QUEUE_BYTES) as sink:
        for number in range(PARTS):
            sink.put(_content(number, raw), raw.nbytes)


def _content(number: int, raw: torch.Tensor) -> PartContent:
    bits = raw.view(torch.uint16) if raw.dtype == torch.bfloat16 else raw
    return states_content(number, tuple(raw.shape), str(raw.dtype).removeprefix("torch."), bits.numpy().__getitem__)
