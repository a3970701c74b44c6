"""Finished parts of an analysis under way, so that it goes on where it stopped.

Each part's few numbers are kept beside the results, in ``.unfinished/``, under a name made of everything they depend
on: the part's content, the roles, the arrays that were read, the version of strata. Whoever asks for the same gets them
back; the folder goes when the analysis has written its results. A file that cannot be read is computed again.
"""

import hashlib
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine import __version__
from engine.errors import StrataError
from engine.store import Part

__all__ = ["KeptParts", "Task"]


class Task(Protocol):
    """What is computed of one part: where that part is, and all else that the result depends on."""

    @property
    def url(self) -> str:
        """Address of the store."""

    @property
    def name(self) -> str:
        """The part's name."""

    def depends(self) -> tuple[object, ...]:
        """Values whose texts are equal where the results are."""


class KeptParts:
    """Results of finished parts in a folder.

    Parameters
    ----------
    results_folder
        Where the analysis writes.
    """

    def __init__(self, results_folder: Path) -> None:
        self._folder = results_folder / ".unfinished"

    def name(self, what: str, part: Part, task: Task) -> str:
        """Name ``what`` is computed of a part, and all that it depends on."""
        depends = (what, __version__, part.manifest["sha256"], *task.depends())
        return hashlib.sha256(repr(depends).encode()).hexdigest()

    def holds(self, name: str) -> bool:
        """Say whether a finished part is there and whole."""
        return self.load(name) is not None

    def load(self, name: str) -> dict[str, NDArray[np.generic]] | None:
        """Return a finished part's arrays, or None."""
        try:
            with np.load(self._folder / f"{name}.npz", allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return None

    def save(self, name: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep a finished part, whole or not at all.

        Raises
        ------
        StrataError
            It cannot be written.
        """
        staged = self._folder / f"{uuid.uuid4().hex}.tmp.npz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                np.savez(staged, allow_pickle=False, **arrays)
                os.replace(staged, self._folder / f"{name}.npz")
            finally:
                staged.unlink(missing_ok=True)
        except OSError as error:
            raise StrataError(
                f"a finished part could not be kept in {self._folder} ({error}): make room, then run the same command "
                "again, which goes on from the parts that were kept; or choose another --out"
            ) from error

    def clear(self) -> None:
        """Forget everything: the results are written."""
        shutil.rmtree(self._folder, ignore_errors=True)
