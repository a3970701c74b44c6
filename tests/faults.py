"""Files that fail: at a chosen step of whoever writes them, an error, a full disk, or the end of the process.

A step is one call that changes a file system: a write, fsync, rename or link, counted in the order in which they are
made, on any thread. A write that fails leaves half of its bytes behind. Tables that Arrow writes count as one write
each, because it does so outside of Python.
"""

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import pyarrow.parquet as pq
import pytest

__all__ = ["WRITING", "Death", "Faults", "Kind", "Step", "faulty_files"]

_CALLS = {
    "fsync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "link": "link",
    "mkdir": "mkdir",
    "unlink": "remove",
    "rmdir": "remove",
}
WRITING = ("write", "fsync", "rename", "link")
"""Steps whose errors are reported, and whose number is the same in every run."""

Kind = Literal["error", "full", "death"]
# Steps that fail too, once the chosen one has: a full disk stays full, and the dead do nothing.
_AFTERWARDS = {"error": (), "full": ("write", "mkdir"), "death": (*WRITING, "mkdir", "remove")}


class Step(NamedTuple):
    """One step: what kind, and the path that it is about; of a rename the new one, of fsync the open file."""

    kind: str
    path: str


class Death(BaseException):
    """Stands for the process ending: nothing may handle it."""


def _end() -> None:
    raise Death


class Faults:
    """What fails, and the steps that were made.

    Parameters
    ----------
    at
        Number of the step that fails, from 0; None for none.
    kind
        ``error`` fails this step with EIO, ``full`` with ENOSPC, like every later write, and ``death`` ends the
        process before it.
    counted
        The steps that are counted, and can fail.
    end
        How the process ends; by an exception that only tests handle unless told. Where it returns, the step is made:
        the end is then on its way.
    """

    def __init__(
        self,
        at: int | None,
        kind: Kind = "error",
        *,
        counted: tuple[str, ...] = WRITING,
        end: Callable[[], object] = _end,
    ) -> None:
        self.steps: list[Step] = []
        self.struck = False
        self._at, self._kind, self._counted, self._end = at, kind, counted, end
        self._lock = threading.Lock()

    def fails(self, kind: str, path: object) -> bool:
        """Count a step and tell whether it fails."""
        with self._lock:
            chosen = kind in self._counted and len(self.steps) == self._at
            if kind in self._counted:
                self.steps.append(Step(kind, str(path)))
            failing = chosen or (self.struck and kind in _AFTERWARDS[self._kind])
            self.struck |= chosen
        return failing

    def strike(self, path: object) -> None:
        """Do what failing means."""
        if self._kind == "death":
            self._end()
            return
        code = errno.ENOSPC if self._kind == "full" else errno.EIO
        raise OSError(code, os.strerror(code), path if isinstance(path, (str, os.PathLike)) else None)


class _FaultyFile:
    """An open file whose writes are steps."""

    def __init__(self, file: IO[Any], path: object, faults: Faults) -> None:
        self._file, self._path, self._faults = file, path, faults

    def write(self, data: Any) -> int:
        half = 0
        if self._faults.fails("write", self._path):
            half = self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._faults.strike(self._path)
        return half + self._file.write(data[half:])

    def __enter__(self) -> "_FaultyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def faulty_files(faults: Faults) -> Iterator[Faults]:
    """Have the files of this process fail while the context is open."""
    with pytest.MonkeyPatch.context() as patch:
        for call, kind in _CALLS.items():
            patch.setattr(os, call, _faulty_call(getattr(os, call), kind, faults))
        patch.setattr(io, "open", _faulty_open(io.open, faults))
        patch.setattr(pq, "write_table", _faulty_table(pq.write_table, faults))
        yield faults


def _faulty_call(original: Callable[..., Any], kind: str, faults: Faults) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        if faults.fails(kind, arguments[1] if kind in ("rename", "link") else arguments[0]):
            faults.strike(arguments[0])
        return original(*arguments, **options)

    return call


def _faulty_open(original: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    def call(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = original(path, mode, *arguments, **options)
        return file if set(mode) <= set("rbt") else _FaultyFile(file, path, faults)

    return call


def _faulty_table(original: Callable[..., None], faults: Faults) -> Callable[..., None]:
    def call(table: Any, where: Path, **options: Any) -> None:
        failing = faults.fails("write", where)
        original(table, where, **options)
        if failing:
            os.truncate(where, where.stat().st_size // 2)
            faults.strike(where)

    return call
