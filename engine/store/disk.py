"""What is said of a disk: how much is free, and what a failed write needs."""

import shutil
from pathlib import Path
from typing import NamedTuple

__all__ = ["FreeSpace", "describe_failure", "find_free_space"]


class FreeSpace(NamedTuple):
    """Bytes that are free to this user, and the folder that was asked."""

    folder: Path
    free: int


def find_free_space(path: Path) -> FreeSpace:
    """Ask the file system that holds a path, which need not exist."""
    absolute = path.absolute()
    folder = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    return FreeSpace(folder, shutil.disk_usage(folder).free)


def describe_failure(error: OSError, store: Path, need: int) -> str:
    """Say where writing failed and why, how many bytes what is written needs, and how many are free."""
    return (
        f"to {error.filename or store} ({error.strerror or error}): it needs at most {need:,} bytes and "
        f"{find_free_space(store).free:,} are free"
    )
