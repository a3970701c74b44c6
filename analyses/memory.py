"""Peak memory of contextualization, predicted from shapes before a state is read.

What lives at once in one worker: the read, which zarr holds four times at worst (compressed, chunks being decoded, the
assembled selection, the caller's array); the kernel's scratch; the sums of unit vectors. None of it depends on how
many parts a store has. What does grow is the result itself, a few numbers per sample and layer.
"""

import math
from collections.abc import Sequence

import numpy as np

from analyses.part_task import PartTask, open_array, pair_rows
from analyses.reads import plan_reads
from analyses.state_sums import NORMED_AT_ONCE, runs_of
from analyses.unit_sums import scratch_bytes
from engine.errors import UsageError
from engine.store import Part

__all__ = ["PROCESS_BYTES", "check_memory", "format_bytes", "part_bytes", "result_bytes"]

PROCESS_BYTES = 320 * 2**20
"""An interpreter with NumPy, SciPy, pandas, xarray, zarr, Dask, pyarrow and matplotlib loaded: measured 240 MiB."""

_COPIES_OF_A_READ = 4
_FLOAT64, _FLOAT32 = 8, 4


def part_bytes(part: Part, task: PartTask) -> int:
    """Bytes that one worker needs for one part, beyond the process itself.

    Parameters
    ----------
    part : Part
        Its manifest gives the shapes; for hidden states its roles are read to count runs.
    task : PartTask
    """
    entry = part.manifest["arrays"][task.array]
    shape, itemsize = entry["shape"], np.dtype(entry["dtype"]).itemsize
    axis = entry["dims"].index("sample" if task.source == "pooled" else "token")
    samples, dim = part.manifest["samples"], shape[-1]
    if not shape[axis]:
        return 0
    entry_bytes = math.prod(shape[1:]) // shape[axis] * itemsize
    inner = open_array(part, task.array).chunks[axis]
    read = max(
        (read.last_layer - read.first_layer) * (read.stop - read.start)
        for read in plan_reads(shape[0], shape[axis], entry_bytes, inner)
    )
    sums = 2 * len(task.sets) * samples * dim * _FLOAT64  # of a layer, and once more while they are formed
    if task.source == "hidden_states":
        runs = len(runs_of(part, task).bounds)
        sums += 3 * runs * dim * _FLOAT64  # of a layer, of the normed one, of a read
        sums += scratch_bytes(dim) + 3 * NORMED_AT_ONCE * dim * _FLOAT32
        sums += _COPIES_OF_A_READ * part.tokens * _FLOAT32  # roles, and the cuts between them
    return _COPIES_OF_A_READ * max(read, inner) * entry_bytes + sums


def result_bytes(parts: Sequence[Part], layers: int, self_pairs: bool) -> int:
    """Bytes of the cosines of all samples, twice because parts are joined at the end."""
    samples = sum(part.manifest["samples"] for part in parts)
    return 2 * samples * (layers + 1) * len(pair_rows(self_pairs)) * _FLOAT64


def check_memory(per_worker: int, results: int, workers: int, memory: int) -> int:
    """Return the predicted peak in bytes, or refuse.

    Raises
    ------
    UsageError
        The prediction exceeds ``memory``; the message says what would fit.
    """
    needed = PROCESS_BYTES + workers * per_worker + results
    if needed <= memory:
        return needed
    fitting = (memory - PROCESS_BYTES - results) // per_worker
    fewer = f", or lower --workers to {fitting}" if 0 < fitting < workers else ""
    raise UsageError(
        f"--memory {format_bytes(memory)} is too small: {workers} workers of {format_bytes(per_worker)} each, "
        f"{format_bytes(PROCESS_BYTES)} for the process and {format_bytes(results)} for results need "
        f"{format_bytes(needed)}. Raise --memory to {format_bytes(needed)}{fewer}"
    )


def format_bytes(count: int) -> str:
    """Write bytes as people do, rounded up: ``1.3GiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{np.ceil(10 * count / size) / 10:.1f}{unit}"
    return f"{-(-count // 1024)}KiB"
