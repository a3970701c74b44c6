"""Processes that extract: real ones, which can be killed, and which commit a part only when a gate lets them.

So a test can look at the store, or end the process, while parts are staged.
"""

import os
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Semaphore
from pathlib import Path

from engine.cli.main import main
from engine.store import writer

__all__ = ["extract_behind"]


def extract_behind(gate: Semaphore, arguments: Sequence[str]) -> None:
    """Run ``strata extract`` and exit with its code; every commit takes a permit of the gate."""
    commit = writer.commit_part

    def commit_when_let(staged: Path, store: Path, name: str) -> None:
        gate.acquire()
        commit(staged, store, name)

    writer.commit_part = commit_when_let
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    main(["extract", *arguments])
