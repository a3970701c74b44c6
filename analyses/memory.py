"""Peak memory of contextualization, predicted from shapes before a state is read.

What lives at once in one worker: one chunk, compressed and decoded; the kernel's scratch; the sums of unit vectors.
None of it depends on how many parts a store has. What does grow is the result itself, a few numbers per sample and
layer, and what is made of it: curves of images, and bootstrap samples of them in blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from analyses.anisotropy import pair_sums_bytes
from analyses.part_task import PartTask, pair_rows
from analyses.phase_detection import halves_bytes
from analyses.resampling import block_bytes
from analyses.segmentation import segmentation_bytes
from analyses.state_sums import NORMED_AT_ONCE, runs_of
from analyses.token_blocks import scratch_bytes
from engine.errors import UsageError
from engine.store import Part, stream_bytes

__all__ = [
    "PROCESS_BYTES",
    "check_memory",
    "fitting_workers",
    "format_bytes",
    "means_bytes",
    "part_bytes",
    "result_bytes",
    "statistics_bytes",
]

PROCESS_BYTES = 320 * 2**20
"""An interpreter with NumPy, SciPy, pandas, xarray, zarr, Dask, pyarrow and matplotlib loaded: measured 240 MiB."""

_COPIES_OF_ROLES = 4
_COPIES_OF_MEANS = 3  # of samples, of images, and once more while they are formed
_COPIES_OF_CURVES = 4  # one pair's values, those of samples with text, of images, and their distance to the mean
_COPIES_OF_RESAMPLES = 4
_SAMPLE_BYTES = 256  # names and codes of samples that are looked up
_CUT_BYTES = 256  # boundaries of a sample's own curve, for 1 to 4 segments, joined
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
    samples, dim = part.manifest["samples"], entry["shape"][-1]
    needed = stream_bytes(part, task.array)
    needed += 2 * len(task.sets) * samples * dim * _FLOAT64  # of a layer, and once more while they are formed
    if task.source == "hidden_states":
        runs = len(runs_of(part, task).bounds)
        needed += 3 * runs * dim * _FLOAT64  # of a layer, of the normed one, of a chunk
        needed += scratch_bytes(dim) + 3 * NORMED_AT_ONCE * dim * _FLOAT32
        needed += _COPIES_OF_ROLES * part.tokens * _FLOAT32  # roles, and the cuts between them
    if task.prompts:
        needed += pair_sums_bytes(len(task.prompts), entry["shape"][0] + 1, dim)
        needed += _COPIES_OF_MEANS * len(task.sets) * samples * dim * _FLOAT64
    if task.origin is not None:
        needed += task.origin.states.nbytes  # a cluster's worker unpacks its own
    return needed


def means_bytes(part: Part, task: PartTask) -> int:
    """Bytes that one worker needs to sum the mean states of one part, beyond the process itself."""
    layers, *_, dim = part.manifest["arrays"][task.array]["shape"]
    needed = part_bytes(part, task)
    if task.source == "pooled" and task.normed:  # after the final norm they are of hidden states
        needed = max(needed, part_bytes(part, replace(task, source="hidden_states")))
    return needed + len(task.sets) * (layers + 1) * dim * _FLOAT64


def result_bytes(parts: Sequence[Part], layers: int, self_pairs: bool) -> int:
    """Bytes of the cosines of all samples, twice because parts are joined at the end."""
    samples = sum(part.manifest["samples"] for part in parts)
    return 2 * samples * (layers + 1) * len(pair_rows(self_pairs)) * _FLOAT64


def statistics_bytes(samples: int, layers: int, bootstraps: int, *, cut: bool = False) -> int:
    """Bytes of bands over images and, where curves are cut into phases, of that; every sample may be an image.

    Parameters
    ----------
    samples, layers : int
        Of one store.
    bootstraps : int
    cut : bool
        Whether each curve, each resample and each sample's own curve is cut.
    """
    curves = _COPIES_OF_CURVES * samples * layers * _FLOAT64 + samples * _SAMPLE_BYTES
    resamples = _COPIES_OF_RESAMPLES * bootstraps * layers * _FLOAT64
    steps = [block_bytes(samples, bootstraps)]
    if cut:
        steps += [halves_bytes(samples) + segmentation_bytes(layers), samples * _CUT_BYTES + segmentation_bytes(layers)]
    return curves + resamples + max(steps)


def fitting_workers(per_worker: int, results: int, memory: int) -> int:
    """Return how many workers ``memory`` has room for; 0 or less where not for one."""
    return (memory - PROCESS_BYTES - results) // max(1, per_worker)


def check_memory(
    per_worker: int, results: int, workers: int, memory: int, *, shared: Mapping[str, int] = MappingProxyType({})
) -> int:
    """Return the predicted peak in bytes, or refuse.

    Parameters
    ----------
    per_worker, results : int
        Bytes of each worker, and of what is found.
    workers, memory : int
    shared : mapping
        Bytes of what all workers use together, by its name.

    Raises
    ------
    UsageError
        The prediction exceeds ``memory``; the message says what would fit.
    """
    needed = PROCESS_BYTES + workers * per_worker + results + sum(shared.values())
    if needed <= memory:
        return needed
    fitting = fitting_workers(per_worker, results + sum(shared.values()), memory)
    fewer = f", or lower --workers to {fitting}" if 0 < fitting < workers else ""
    each = f"{workers} workers of {format_bytes(per_worker)} each, " if per_worker else ""
    common = "".join(f"{format_bytes(count)} for {name}, " for name, count in shared.items() if count)
    raise UsageError(
        f"--memory {format_bytes(memory)} is too small: {each}{common}"
        f"{format_bytes(PROCESS_BYTES)} for the process and {format_bytes(results)} for results need "
        f"{format_bytes(needed)}. Raise --memory to {format_bytes(needed)}{fewer}"
    )


def format_bytes(count: int) -> str:
    """Write bytes as people do, rounded up: ``1.3GiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{np.ceil(10 * count / size) / 10:.1f}{unit}"
    return f"{-(-count // 1024)}KiB"
