"""Processes that analyse: real ones, which can be killed, and which keep only as many parts as they are allowed to."""

import os
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Semaphore
from typing import Any

from analyses.kept_parts import KeptParts
from engine.cli.main import main

__all__ = ["analyze_behind"]


def analyze_behind(gate: Semaphore, arguments: Sequence[str]) -> None:
    """Run ``strata analyze`` and exit with its code; each finished part takes a permit of the gate."""
    save = KeptParts.save

    def save_when_let(self: KeptParts, name: str, arrays: Any) -> None:
        gate.acquire()
        save(self, name, arrays)

    KeptParts.save = save_when_let  # type: ignore[method-assign]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    main(["analyze", *arguments])
