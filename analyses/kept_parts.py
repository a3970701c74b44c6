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
from pathlib import Path

import numpy as np

from analyses.part_cosines import PartCosines
from analyses.part_task import PartTask
from engine import __version__
from engine.errors import StrataError
from engine.store import Part

__all__ = ["KeptParts"]


class KeptParts:
    """Results of finished parts in a folder.

    Parameters
    ----------
    results_folder
        Where the analysis writes.
    """

    def __init__(self, results_folder: Path) -> None:
        self._folder = results_folder / ".unfinished"

    def name(self, part: Part, task: PartTask) -> str:
        """Name what a task's result depends on."""
        depends = (
            __version__,
            part.manifest["sha256"],
            task.source,
            task.text_roles,
            task.self_pairs,
            task.normed,
            _norm_text(task),
        )
        return hashlib.sha256(repr(depends).encode()).hexdigest()

    def load(self, name: str) -> PartCosines | None:
        """Return a finished part, or None."""
        try:
            with np.load(self._folder / f"{name}.npz", allow_pickle=False) as arrays:
                return PartCosines(**{field: arrays[field] for field in PartCosines._fields})
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return None

    def save(self, name: str, result: PartCosines) -> None:
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
                np.savez(staged, **result._asdict())
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


def _norm_text(task: PartTask) -> str:
    if task.norm is None:
        return ""
    digest = hashlib.sha256(task.norm.weight.tobytes())
    digest.update(b"" if task.norm.bias is None else task.norm.bias.tobytes())
    return f"{task.norm.kind} {task.norm.eps} {task.norm.weight_offset} {digest.hexdigest()}"
