"""Attention of two queries captured under SDPA, against the bare pass and against eager attention, time and memory.

Times are taken in turns in this process; memory is what one pass adds to the resident memory of a process of its own,
the median of several. There malloc returns what is freed at once: by default glibc raises that threshold as a program
runs, and resident memory then tells which freed pieces it happens to keep, tens of MiB more or less in each run.
Eager attention with ``output_attentions=True`` is how attention is usually had; it keeps all rows of all layers.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.attention_passes import KINDS, make_passes
from tests.bench.random_llava import build_llava
from tests.bench.rows import Row, at_least, at_most
from tests.bench.timing import take_turns

__all__ = ["run"]

MIB = 2**20
_RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # glibc's first values, kept


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure one sequence; nothing is written."""
    dim, blocks, tokens = (128, 2, 300) if quick else (1024, 12, 2048)
    of_what = f"width {dim}, {blocks} blocks, {tokens} tokens, float32"
    passes = make_passes(build_llava(dim=dim, blocks=blocks, dtype="float32"), tokens)
    # Of passes that take the same cores the fastest rounds count: a busy machine slows some out of proportion.
    times = take_turns({kind: passes[kind] for kind in ("bare", "captured")}, rounds=1 if quick else 6)
    against_eager = take_turns({kind: passes[kind] for kind in ("captured", "eager")}, rounds=1 if quick else 2)
    memory = {kind: _median_rise(kind, dim, blocks, tokens, rounds=1 if quick else 3) for kind in KINDS}
    yield Row(
        "attention of two queries, time",
        times.ratio_of_best("captured", "bare"),
        f"the bare pass under SDPA ({of_what}), {times.best('bare')} against {times.best('captured')}",
        at_most(1.2),
    )
    yield Row(
        "attention of two queries, memory",
        memory["captured"] / memory["bare"],
        f"what the bare pass adds to resident memory, {memory['bare'] / MIB:.0f} MiB against "
        f"{memory['captured'] / MIB:.0f} MiB",
        at_most(1.2),
    )
    yield Row(
        "eager attention, time",
        against_eager.ratio_of_best("eager", "captured"),
        "captured under SDPA; eager with output_attentions=True takes "
        f"{against_eager.best('eager')} against {against_eager.best('captured')}",
        at_least(1.7),
    )
    yield Row(
        "attention of two queries, memory of eager",
        memory["captured"] / memory["eager"],
        f"what eager adds with output_attentions=True, {memory['eager'] / MIB:.0f} MiB",
        at_most(0.25),
    )


def _median_rise(kind: str, dim: int, blocks: int, tokens: int, *, rounds: int) -> float:
    arguments = [kind, *map(str, (dim, blocks, tokens))]
    command = [sys.executable, "-m", "tests.bench.attention_passes", *arguments]
    environment = {**os.environ, **_RETURN_FREED}
    runs = (subprocess.run(command, check=True, capture_output=True, text=True, env=environment) for _ in range(rounds))
    return statistics.median(int(json.loads(run.stdout)) for run in runs)
