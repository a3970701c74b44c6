"""Which stored tokens each pooled state is the mean of, and which of them another run of the model may have made."""

from typing import NamedTuple

import numpy as np

from engine.store.deep_axes import Axes
from engine.store.part import Part
from engine.vocabulary import ROLES

__all__ = ["PooledOf", "PooledRuns", "find_pooled_runs"]

_ONCE = "once per image"


class PooledOf(NamedTuple):
    """The tokens of one sample and role.

    Attributes
    ----------
    role
        Index along the role axis.
    runs
        Numbers of the runs.
    again
        Those of them that are stored as another sample's pass made them, while this sample's pass made its own.
    tokens
        How many tokens the runs have.
    """

    role: int
    runs: np.ndarray
    again: np.ndarray
    tokens: int


class PooledRuns(NamedTuple):
    """Which runs of the token axis are averaged for which sample and role.

    Attributes
    ----------
    starts
        (run,) where runs of one role, that belong to the same samples, start.
    of_sample
        Per sample one entry for each role whose tokens are all stored.
    """

    starts: np.ndarray
    of_sample: list[list[PooledOf]]


def find_pooled_runs(part: Part, axes: Axes, states: str) -> PooledRuns | None:
    """Find what can be compared; None where the part has not both states and counts of what was pooled.

    Parameters
    ----------
    part, axes
        The part and its axes.
    states
        Path of the stored states.
    """
    entries, codes = part.manifest["arrays"], axes.coordinates.get("sample/role")
    if states not in entries or axes.counts is None or codes is None:
        return None
    role, again = axes.coordinates["token/role"], _made_again(part, axes)
    kept = entries[states]["attributes"].get("roles", ROLES)
    ends = {run[end] for segments in axes.samples["segments"] for run in segments for end in ("start", "stop")}
    piece = np.searchsorted(np.array(sorted(ends), np.int64), np.arange(len(role)), side="right")
    starts = np.flatnonzero(np.any([np.diff(each, prepend=-2) != 0 for each in (role, piece, again.astype(int))], 0))
    lengths = np.diff(starts, append=len(role))
    run_of_token = np.repeat(np.arange(len(starts)), lengths)
    place = {int(code): index for index, code in enumerate(codes) if 0 <= code < len(ROLES) and ROLES[code] in kept}
    of_sample: list[list[PooledOf]] = []
    for sample in range(len(axes.samples)):
        runs = np.unique(run_of_token[axes.places(sample)])
        of_others = (axes.token_sample[starts[runs]] != sample) & again[starts[runs]]
        pooled = []
        for code in np.unique(role[starts[runs]]):
            chosen = role[starts[runs]] == code
            tokens, index = int(lengths[runs[chosen]].sum()), place.get(int(code))
            if index is not None and tokens == axes.counts[index, sample]:
                pooled.append(PooledOf(index, runs[chosen], runs[chosen & of_others], tokens))
        of_sample.append(pooled)
    return PooledRuns(starts, of_sample)


def _made_again(part: Part, axes: Axes) -> np.ndarray:
    """Say of each token, if samples share it, whether each of them ran it for itself: (token,) bool.

    Where the prefix ran once per image no pass made it again, but for its last position where a sample has nothing
    behind it: a pass needs something to run. A sample that is not stored may have been such a one.
    """
    if part.manifest["run"].get("prefix_pass") != _ONCE:
        return np.ones(part.tokens, bool)
    again = np.zeros(part.tokens, bool)
    not_stored = {bad["sample_id"].rpartition("/")[0] for bad in part.manifest["bad_samples"]}
    for sample, image in enumerate(axes.samples["image_id"]):
        own = axes.places(sample)
        shared = own[axes.token_sample[own] != sample]
        if len(shared):
            last = int(shared[-1])
            ends = (own[-1], axes.places(int(axes.token_sample[last]))[-1])
            again[last] |= last in ends or image in not_stored
    return again
