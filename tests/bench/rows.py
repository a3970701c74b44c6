"""One figure of the benchmark: a ratio, what it is measured against, and whether it meets its goal."""

import math
from typing import Any, NamedTuple

__all__ = ["NO_GOAL", "Goal", "Row", "at_least", "at_most"]


class Goal(NamedTuple):
    """Bounds of a ratio, both included; None where there is none."""

    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"≥ {self.low:g}"
        return "" if self.high is None else f"≤ {self.high:g}"

    def met(self, value: float) -> bool | None:
        """Tell whether ``value`` lies within the bounds; None without bounds, and NaN meets nothing."""
        if self.low is None and self.high is None:
            return None
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= value <= high


NO_GOAL = Goal(None, None)


def at_least(low: float) -> Goal:
    """A goal that larger values meet."""
    return Goal(low, None)


def at_most(high: float) -> Goal:
    """A goal that smaller values meet."""
    return Goal(None, high)


class Row(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    name
        What was measured.
    value
        The ratio.
    against
        What it was divided by, with the absolute numbers of this run.
    goal
        What the ratio should be.
    """

    name: str
    value: float
    against: str
    goal: Goal = NO_GOAL

    def record(self) -> dict[str, Any]:
        """Fields of ``bench.json``: name, value (three decimals), goal (text or null), met, against."""
        return {
            "name": self.name,
            "value": round(self.value, 3) if math.isfinite(self.value) else None,
            "goal": str(self.goal) or None,
            "met": self.goal.met(self.value),
            "against": self.against,
        }
