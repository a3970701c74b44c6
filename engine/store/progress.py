"""How far each of several processes is that fill a store: from the plan, the manifests and the staging folder.

Rank r of W owns the parts r, r+W, …, whoever wrote them in the end.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from engine.store.commit import Writer, staged_pieces
from engine.store.layout import PARTS_FOLDER, part_name
from engine.store.reader import Store

__all__ = ["Filling", "RankProgress", "rank_progress", "read_filling", "recorded_world_size", "recorded_world_sizes"]


class Filling(NamedTuple):
    """A store as it fills.

    Attributes
    ----------
    planned
        Planned samples of each part, by number.
    manifests
        Of the committed parts.
    staged
        Parts in the staging folder, and whether a process is writing them.
    committed_at
        When parts were committed, seconds since the epoch, as far as known.
    """

    planned: Mapping[int, int]
    manifests: Mapping[int, Mapping[str, Any]]
    staged: Mapping[int, Writer]
    committed_at: Mapping[int, float]


class RankProgress(NamedTuple):
    """One rank's share of a store.

    Attributes
    ----------
    rank
        Its number.
    parts, committed_parts
        How many of the planned parts it owns, and how many of these are committed.
    samples, committed_samples
        Planned samples of these; those that could not be stored count as committed with their part.
    by_others
        Committed parts that another run wrote, such as one without ranks.
    staged
        Parts of its own that lie in the staging folder, and whether a process is writing them.
    samples_per_second
        Of the parts that it wrote itself: by the time that extracting them took, or by the usual time from one commit
        to the next where that is longer; None where there is none.
    last_commit
        When the newest of its parts was committed, seconds since the epoch; None where that is not known.
    """

    rank: int
    parts: int
    committed_parts: int
    samples: int
    committed_samples: int
    by_others: int
    staged: tuple[tuple[int, Writer], ...]
    samples_per_second: float | None
    last_commit: float | None

    @property
    def seconds_left(self) -> float | None:
        """What is left at the rate so far; 0 where nothing is, None without a rate."""
        left = self.samples - self.committed_samples
        if not left:
            return 0.0
        return None if self.samples_per_second is None else left / self.samples_per_second


def recorded_world_size(manifests: Sequence[Mapping[str, Any]]) -> int:
    """Return by how many ranks most of the parts were written, the larger number of a draw; 1 where none says so."""
    sizes = Counter(_writer(manifest)[1] for manifest in manifests)
    return max(sizes, key=lambda size: (sizes[size], size), default=1)


def recorded_world_sizes(manifests: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return by how many ranks parts were written: each number once, ascending."""
    return sorted({_writer(manifest)[1] for manifest in manifests})


def rank_progress(filling: Filling, world_size: int) -> list[RankProgress]:
    """Divide a store among ranks; those that own no part are left out."""
    owned: dict[int, list[int]] = {}
    for part in sorted(filling.planned):
        owned.setdefault(part % world_size, []).append(part)
    return [_of_rank(rank, owned[rank], filling, world_size) for rank in sorted(owned)]


def _of_rank(rank: int, parts: Sequence[int], filling: Filling, world_size: int) -> RankProgress:
    planned = filling.planned
    committed = [part for part in parts if part in filling.manifests]
    own = [part for part in committed if _writer(filling.manifests[part]) == (rank, world_size)]
    moments = [filling.committed_at[part] for part in committed if part in filling.committed_at]
    return RankProgress(
        rank=rank,
        parts=len(parts),
        committed_parts=len(committed),
        samples=sum(planned[part] for part in parts),
        committed_samples=sum(planned[part] for part in committed),
        by_others=len(committed) - len(own),
        staged=tuple((part, filling.staged[part]) for part in parts if part in filling.staged),
        samples_per_second=_rate(own, filling),
        last_commit=max(moments, default=None),
    )


def _rate(own: Sequence[int], filling: Filling) -> float | None:
    """Measure samples per second of a rank's own parts.

    By the time that extracting them took, or by the usual time from one commit to the next where that is longer: the
    model may have waited for the writer. The median knows nothing of a night between two runs.
    """
    seconds = sum(float(filling.manifests[part]["seconds"]) for part in own)
    if seconds <= 0:
        return None
    commits = sorted((filling.committed_at[part], part) for part in own if part in filling.committed_at)
    gaps = [(at - before) / filling.planned[part] for (before, _), (at, part) in itertools.pairwise(commits)]
    per_sample = seconds / sum(filling.planned[part] for part in own)
    return 1 / max([per_sample, *([statistics.median(gaps)] if gaps else [])])


def _writer(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """Rank and world size of who wrote a part; one process where the manifest, an earlier strata's, does not say."""
    run = manifest.get("run")
    rank, world_size = (run.get("rank"), run.get("world_size")) if isinstance(run, Mapping) else (None, None)
    if isinstance(rank, int) and isinstance(world_size, int) and 0 <= rank < world_size:
        return rank, world_size
    return 0, 1


def read_filling(store: Store) -> Filling:
    """Look at one opened store; what is being written, and when parts were committed, is known of local ones only."""
    planned = store.plan["part"].value_counts()
    manifests = {part.number: part.manifest for part in store.parts}
    if "://" in store.url:
        return Filling(planned.to_dict(), manifests, {}, {})
    root, staged, committed_at = Path(store.url), {}, {}
    for name, writer in staged_pieces(root).items():
        number = name.partition("-")[0]
        # A part that was committed while we looked is no longer being written.
        if number.isdecimal() and int(number) not in manifests:
            staged[int(number)] = writer
    for part in manifests:
        with suppress(FileNotFoundError):
            committed_at[part] = (root / PARTS_FOLDER / f"{part_name(part)}.json").stat().st_mtime
    return Filling(planned.to_dict(), manifests, staged, committed_at)
