"""Which parts this process owns when several extract into one store.

Rank r of W owns parts r, r+W, …; part writers share no file, so ranks need no lock and no coordinator.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from engine.cores import usable_cores
from engine.errors import UsageError

__all__ = ["Rank", "find_local_rank", "find_rank", "share_cores"]


class Rank(NamedTuple):
    """Rank of ``world_size`` and where the pair came from."""

    rank: int
    world_size: int
    origin: str

    def owned(self, parts: Sequence[int]) -> tuple[int, ...]:
        """Pick the part numbers that this rank extracts."""
        return tuple(part for part in parts if part % self.world_size == self.rank)

    def describe(self, parts: Sequence[int]) -> str:
        """One line: who this is and which parts it owns."""
        owned = self.owned(parts)
        listing = ", ".join(map(str, owned[:8])) + (f", … ({len(owned)} parts)" if len(owned) > 8 else "")
        return f"rank {self.rank} of {self.world_size} ({self.origin}): parts {listing or 'none'}"


def find_rank(rank: int | None, world_size: int | None, environment: Mapping[str, str]) -> Rank:
    """Rank from the flags, else torchrun's variables, else Slurm's inside a step.

    Parameters
    ----------
    rank, world_size
        ``--rank`` and ``--world-size``.
    environment
        Variables of the process. Slurm's count only where ``SLURM_STEP_ID`` is set: under bare sbatch they would
        silently extract one part in ``SLURM_NTASKS``.

    Raises
    ------
    UsageError
        Where one of a pair is missing, no number, or the rank is outside the world.
    """
    candidates: list[tuple[str, str | None, str | None]] = [
        ("--rank", None if rank is None else str(rank), None if world_size is None else str(world_size)),
        ("RANK", environment.get("RANK"), environment.get("WORLD_SIZE")),
    ]
    if "SLURM_STEP_ID" in environment:
        candidates.append(("SLURM_PROCID", environment.get("SLURM_PROCID"), environment.get("SLURM_NTASKS")))
    partner = {"--rank": "--world-size", "RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
    for origin, own, world in candidates:
        if own is None and world is None:
            continue
        if own is None or world is None:
            missing = origin if own is None else partner[origin]
            raise UsageError(
                f"{missing} is missing: {origin} and {partner[origin]} belong together; give both or none."
            )
        if not own.isdecimal() or not world.isdecimal() or not int(own) < int(world):
            raise UsageError(f"{origin} {own} of {partner[origin]} {world}: a rank is a number from 0 below the world.")
        return Rank(int(own), int(world), origin)
    return Rank(0, 1, "one process")


def find_local_rank(environment: Mapping[str, str]) -> int:
    """Find the number of this process among those of its node, which chooses its GPU; 0 where no launcher says.

    Parameters
    ----------
    environment
        torchrun's ``LOCAL_RANK``, else Slurm's ``SLURM_LOCALID`` inside a step.
    """
    given = environment.get("LOCAL_RANK")
    if given is None and "SLURM_STEP_ID" in environment:
        given = environment.get("SLURM_LOCALID")
    return int(given) if given is not None and given.isdecimal() else 0


def share_cores(environment: Mapping[str, str]) -> None:
    """Let torch compute with no more threads than this process has cores; ``OMP_NUM_THREADS``, where set, stands.

    Parameters
    ----------
    environment
        Variables of the process, which tell of other ranks on its machine.
    """
    if "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores(environment)))
