"""Resident memory of this process, read from ``/proc``, hence Linux only."""

import re
from pathlib import Path

__all__ = ["reset_peak", "resident"]


def reset_peak() -> None:
    """Start the high-water mark anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Bytes of a field of the process's status: ``VmRSS`` is resident now, ``VmHWM`` the high-water mark."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))
