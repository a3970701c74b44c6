"""Times of several ways of doing the same thing, taken in turns so that a busy machine slows all of them alike.

Every contestant runs once before the first round: libraries are imported, and files lie in the page cache unless they
are cleared from it.
Rounds go through them in the orders of a Williams square, because what one leaves behind, freed memory above all, the
next one pays for: there each one follows every other equally often (E. J. Williams 1949).
"""

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["Times", "take_turns"]


class Times:
    """Seconds of every contestant in every round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self._seconds = seconds

    def ratio(self, numerator: str, denominator: str) -> float:
        """Median over rounds of one contestant's seconds divided by the other's of the same round."""
        pairs = zip(self._seconds[numerator], self._seconds[denominator], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def ratio_of_best(self, numerator: str, denominator: str) -> float:
        """One contestant's fastest round by the other's, for work that a busy machine slows out of proportion."""
        return min(self._seconds[numerator]) / min(self._seconds[denominator])

    def rate(self, contestant: str, size: float) -> str:
        """``size`` bytes per median second, as text."""
        return f"{size / statistics.median(self._seconds[contestant]) / 1e6:,.0f} MB/s"

    def best(self, contestant: str) -> str:
        """Seconds of the fastest round, as text."""
        return f"{min(self._seconds[contestant]):.2f} s"


def take_turns(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, clear: Callable[[], object] | None = None
) -> Times:
    """Run all contestants once to warm up, then ``rounds`` times in turns, each time in another order.

    Parameters
    ----------
    contestants
        By name; called without arguments.
    rounds
        At least 1.
    clear
        Called after each run, outside of its time: removes what it wrote, or makes the machine forget what it read.
    """
    clear = clear or (lambda: None)
    for run in contestants.values():
        run()
        clear()
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in (names[place] for place in _order(len(names), turn)):
            began = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - began)
            clear()
    return Times(seconds)


def _order(count: int, turn: int) -> list[int]:
    """Return the row of a Williams square; of an odd number of contestants two squares, rows of both in turn."""
    places = [0]
    for step in range(1, count):
        places.append((places[-1] + (step if step % 2 else -step)) % count)
    row = [(place + turn) % count for place in places]
    return row[::-1] if count % 2 and turn % 2 else row
