"""Which stored tokens make up which sample's image and text: runs, and who uses them.

A run is a stretch of neighbouring tokens of one role that the same samples see. Cutting the token axis at every segment
end and every change of role makes each run whole inside each sample, so a prefix that nine prompts share is summed
once and added nine times.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = ["TokenRuns", "plan_runs", "runs_within"]


class TokenRuns(NamedTuple):
    """The runs of one part and how samples are made of them.

    Attributes
    ----------
    bounds : array (run, 2), int64
        Start and stop on the part's token axis, ascending, without overlap.
    members : tuple of sparse arrays (sample, run)
        For each set of roles asked for: 1 where the run is in the sample and its role in the set.
    counts : array (set, sample), int64
        Tokens of each sample in each set.
    """

    bounds: NDArray[np.int64]
    members: tuple[csr_array, ...]
    counts: NDArray[np.int64]


def plan_runs(
    roles: NDArray[np.integer], segments: Sequence[Sequence[tuple[int, int]]], sets: Sequence[Sequence[int]]
) -> TokenRuns:
    """Cut a part's token axis into runs.

    Parameters
    ----------
    roles : array (token) of int
        Role code of every stored token.
    segments : per sample, its (start, stop) pairs on the token axis
    sets : per set, the role codes that belong to it
        Tokens in no set are in no run.
    """
    changes = np.flatnonzero(np.diff(roles)) + 1
    ends = np.array([end for own in segments for pair in own for end in pair], np.int64)
    cuts = np.unique(np.concatenate([[0, len(roles)], changes, ends])).astype(np.int64)
    starts, stops = cuts[:-1], cuts[1:]
    spans = [(np.searchsorted(starts, first), np.searchsorted(starts, stop)) for own in segments for first, stop in own]
    owners = np.repeat(np.arange(len(segments)), [len(own) for own in segments])
    uses = np.concatenate([np.arange(first, stop) for first, stop in spans] or [np.zeros(0, np.int64)])
    users = np.repeat(owners, [stop - first for first, stop in spans])

    role = roles[starts] if len(roles) else np.zeros(0, np.int64)
    in_sets = [np.isin(role, codes) for codes in sets]
    used = np.zeros(len(starts), bool)
    used[uses] = True
    kept = np.flatnonzero(used & np.logical_or.reduce(in_sets))
    number = np.full(len(starts), -1)
    number[kept] = np.arange(len(kept))

    members, shape = [], (len(segments), len(kept))
    for chosen in in_sets:
        use = chosen[uses]
        where = (users[use], number[uses[use]])
        members.append(csr_array((np.ones(int(use.sum())), where), shape=shape))
    lengths = (stops - starts)[kept]
    counts = np.stack([(member @ lengths).astype(np.int64) for member in members])
    return TokenRuns(np.stack([starts[kept], stops[kept]], axis=1), tuple(members), counts)


def runs_within(bounds: NDArray[np.int64], start: int, stop: int) -> tuple[slice, NDArray[np.int64]]:
    """Which runs touch tokens ``start`` to ``stop``, and their bounds inside that stretch, counted from its start."""
    touching = slice(
        int(np.searchsorted(bounds[:, 1], start, side="right")), int(np.searchsorted(bounds[:, 0], stop, side="left"))
    )
    return touching, np.clip(bounds[touching], start, stop) - start
