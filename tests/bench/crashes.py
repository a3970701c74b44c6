"""SIGKILL at 200 moments of ``strata extract`` on a tiny model, each followed by a resume; see ``tests.crashes``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row, at_least
from tests.crashes import SHORT_STATES, STATES, crash_often

__all__ = ["run"]

KILLS = 200


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Count the kills after which nothing is lost, nothing doubled, nothing left, and every byte is the same."""
    kills = crash_often(folder, 8 if quick else KILLS)
    states = Counter(kill["state"] for kill in kills)
    found = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    wrong = [kill["wrong"][0] for kill in kills if kill["wrong"]]
    yield Row(
        "kills survived",
        1 - len(wrong) / len(kills),
        f"{len(kills)} kills of extractions; what lay on the disk: {found}. After the resume the store has the bytes "
        f"of one that was never killed{', but ' * bool(wrong)}{'; '.join(wrong[:3])}",
        at_least(1.0),
    )
    yield Row(
        "short states hit",
        sum(state in states for state in SHORT_STATES) / len(SHORT_STATES),
        f"states that last for an instant: {', '.join(SHORT_STATES)}",
        at_least(1.0),
    )
