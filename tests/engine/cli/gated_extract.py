"""Processes that extract: real ones, which can be killed, forked off a server that has imported everything once.

A process commits a part only when the gate lets it, so that a test can look at the store, or kill the process, while
parts are staged.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Semaphore
from pathlib import Path

from engine.cli.main import main
from engine.store import writer

__all__ = ["CONTEXT", "extract_behind"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.engine.cli.gated_extract", "engine.cli.extract", "tests.tiny_llava"])


def extract_behind(gate: Semaphore, arguments: Sequence[str]) -> None:
    """Run ``strata extract`` and exit with its code; every commit takes a permit of the gate."""
    commit = writer.commit_part

    def commit_when_let(staged: Path, store: Path, name: str) -> None:
        gate.acquire()
        commit(staged, store, name)

    writer.commit_part = commit_when_let
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    main(["extract", *arguments])
