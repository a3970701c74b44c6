"""Stores that a report reads beside the results: they must be those of the results, and what was verified is said."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from analyses.identity import identify
from analyses.report.results import Results
from engine.errors import UsageError
from engine.store import Store, open_store, verify

__all__ = ["Check", "ReportedStore", "open_reported", "verification"]

_MOST_PROBLEMS = 5


class ReportedStore(NamedTuple):
    """A store of the results.

    Attributes
    ----------
    place : int
        Among the stores of the results.
    path : str
        As it was given.
    store : Store
    note : str
        What is not as the results have it; empty where all is.
    """

    place: int
    path: str
    store: Store
    note: str


def open_reported(paths: Sequence[str], results: Results) -> list[ReportedStore]:
    """Open stores and find each among those of the results, by its plan.

    Raises
    ------
    UsageError
        A store is none of the results', or is named twice.
    """
    found: list[ReportedStore] = []
    for path in paths:
        store = open_store(path)
        (own,) = identify([store])
        places = [place for place, one in enumerate(results.identities) if one.plan_sha256 == own.plan_sha256]
        if not places:
            plans = ", ".join(f"{one.store} (plan {one.plan_sha256[:8]})" for one in results.identities)
            raise UsageError(
                f"--store {path} has the plan {own.plan_sha256[:8]}, {results.folder} holds results of {plans}: "
                "name the stores of these results"
            )
        if places[0] in [other.place for other in found]:
            raise UsageError(f"--store {path} is a store that is named already: name each store once")
        same = own.parts_sha256 == results.identities[places[0]].parts_sha256
        note = "" if same else f"{path} has other parts than when its results were computed: run strata analyze again"
        found.append(ReportedStore(places[0], path, store, note))
    return sorted(found)


class Check(NamedTuple):
    """What verifying a store found: whether it has no problem, and a sentence with the time."""

    sound: bool
    sentence: str


def verification(path: str, progress: Callable[[int, int], None] | None = None) -> Check:
    """Verify a local store and say so in a sentence, with the time.

    Parameters
    ----------
    path : str
    progress : callable, optional
        As of `engine.store.verify`.
    """
    if "://" in path:
        return Check(False, f"not verified: {path} is not on this machine, and strata verify reads local stores")
    found = verify(Path(path), progress)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if not found.problems:
        return Check(True, f"verified on {when}: every planned part is there, every file as it was written")
    named = "; ".join(f"{problem.file}: {problem.message}" for problem in found.problems[:_MOST_PROBLEMS])
    count = f"{len(found.problems)} problem{'' if len(found.problems) == 1 else 's'}"
    return Check(False, f"verified on {when}: {count}: {named}")
