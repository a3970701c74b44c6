"""Writing alone: a fake producer hands over raw states of whole parts, against ``torch.save`` and fsync of the same.

Both write to the same disk and end when the bytes are durable. The sink compresses, hashes and commits.
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from engine.capture.sink import QUEUE_BYTES, BackgroundSink
from engine.plan import PART_BYTES
from engine.store import PartContent, write_part
from tests.bench.rows import Row, at_least
from tests.bench.states import make_states
from tests.bench.stores import states_content
from tests.bench.timing import take_turns

__all__ = ["run"]

PARTS = 2
LAYERS, DIM = 33, 4096


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes, in parts of the size that extraction makes by default."""
    layers, dim = (3, 512) if quick else (LAYERS, DIM)
    tokens = (4 * 2**20 if quick else PART_BYTES) // (2 * layers * dim)
    states = make_states(0, layers=layers, tokens=tokens, dim=dim)
    target = folder / "written"
    for dtype in ("float16", "bfloat16"):
        raw = torch.from_numpy(states).to(getattr(torch, dtype))
        times = take_turns(
            {"sink": partial(_sink, target, raw), "save": partial(_save, target, raw)},
            rounds=2 if quick else 4,
            clear=partial(shutil.rmtree, target),
        )
        size = PARTS * raw.nbytes
        yield Row(
            f"writing parts, {dtype}",
            times.ratio("save", "sink"),
            f"rate of torch.save and fsync of the same bytes, {times.rate('save', size)} of raw states; the sink "
            f"takes {times.rate('sink', size)}",
            at_least(1.0),
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
