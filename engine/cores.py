"""How many cores this process may count on, where several ranks of a run share a machine.

Threads of ranks that together want more than there is wait for each other: four processes that each take every core are
slower than one. torchrun says how many processes a machine has, Slurm how many cores each of them gets.
"""

import os
from collections.abc import Mapping

__all__ = ["part_threads", "usable_cores"]


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Count the cores that are this process's own share, at least one.

    Parameters
    ----------
    environment
        ``LOCAL_WORLD_SIZE``, set by torchrun, or by hand where ranks are started by hand, counts the processes that
        share what this one may run on. Inside a Slurm step ``SLURM_CPUS_PER_TASK`` is the share itself.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = _number(environment.get("LOCAL_WORLD_SIZE"))
    if processes is not None:
        return max(1, allowed // processes)
    share = _number(environment.get("SLURM_CPUS_PER_TASK")) if "SLURM_STEP_ID" in environment else None
    return allowed if share is None else min(allowed, share)


def part_threads() -> int:
    """Return how many threads write or check one part: as many as this process has cores, at most eight."""
    return min(8, usable_cores())


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and int(text) else None
