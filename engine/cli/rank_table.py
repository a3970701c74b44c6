"""How far each rank is, as a table: for ``strata inspect``."""

import time
from collections.abc import Sequence

from rich.table import Table

from engine.cli.sizes import format_duration
from engine.store import RankProgress

__all__ = ["make_rank_table"]

_WRITERS = {
    "alive": "part {} is being written",
    "none": "part {} was left by a crash; the same command redoes it",
    "unknown": "part {} is being written, or was left by a crash",
}


def make_rank_table(ranks: Sequence[RankProgress], now: float | None = None) -> Table:
    """One line per rank: its parts and samples, its rate and what is left at that, its last part, and what it writes.

    Parameters
    ----------
    ranks
        As `engine.store.rank_progress` gives them.
    now
        Seconds since the epoch; the clock's when None.
    """
    now = time.time() if now is None else now
    table = Table(box=None, pad_edge=False)
    for heading in ("rank", "parts", "samples", "samples/s", "left at that rate", "last part"):
        table.add_column(heading, justify="right")
    table.add_column("now", overflow="fold")
    for rank in ranks:
        rate = "" if rank.samples_per_second is None else f"{rank.samples_per_second:.1f}"
        last = "" if rank.last_commit is None else f"{format_duration(max(now - rank.last_commit, 0))} ago"
        table.add_row(
            str(rank.rank),
            f"{rank.committed_parts} of {rank.parts}",
            f"{rank.committed_samples} of {rank.samples}",
            rate,
            _left(rank.seconds_left),
            last,
            "; ".join(_remarks(rank)),
        )
    return table


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return format_duration(seconds) if seconds else "nothing"


def _remarks(rank: RankProgress) -> list[str]:
    staged = [_WRITERS[writer].format(part) for part, writer in rank.staged]
    return [*staged, *([f"{rank.by_others} by other runs"] if rank.by_others else [])]
