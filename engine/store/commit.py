"""From staged files to a store, so that a crash at any moment leaves a whole part or none.

Everything is built under ``STORE/.staging/`` and made durable there (zarr syncs nothing). Then a part's folder and
table are renamed into ``parts/`` and its manifest last of all: **a part exists if and only if its manifest does**. The
few files that all writers share are deterministic bytes; they are linked into place one by one, which the first writer
wins, and later writers compare. Requires a file system with atomic rename and hard links.
"""

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

from engine.errors import StrataError
from engine.store.layout import PARTS_FOLDER, STAGING_FOLDER, STORE_FILE
from engine.store.manifest import hash_file

__all__ = [
    "Writer",
    "commit_part",
    "files_below",
    "link_common",
    "refuse_committed",
    "remove_leftovers",
    "staged_pieces",
    "staging_folder",
    "sync_file",
    "sync_folders",
]

SYNC_THREADS = 4


_ABANDONED_SECONDS = 3600
_TRIES, _TRY_SECONDS = 3, 0.02
_CLEARINGS = 5

Writer = Literal["none", "alive", "unknown"]
"""Whether a process is writing a piece of ``.staging``: its lock tells; unknown on a file system without locks."""


@contextmanager
def staging_folder(store: Path, name: str, *, alone: bool) -> Iterator[Path]:
    """Make a fresh folder under ``STORE/.staging`` and remove it, with whatever is left inside, at the end.

    The folder is locked while its process lives, so what a crash left is told from what another process is writing;
    the former is removed.

    Parameters
    ----------
    store
        The store's folder.
    name
        What is built.
    alone
        Whether a second process that builds the same is a mistake (a part), or welcome (the files all share).

    Raises
    ------
    StrataError
        When another process is building the same and should not.
    """
    staging = store / STAGING_FOLDER
    folder = staging / f"{name}-{uuid.uuid4().hex}"
    # Locked before it has a name that others look for: unlocked, they would take it for left by a crash.
    unnamed = staging / f"new-{_machine()}.{os.getpid()}-{folder.name}"
    unnamed.mkdir(parents=True)
    handle = os.open(unnamed, os.O_RDONLY)
    try:
        _lock(handle)
        os.rename(unnamed, folder)
        _remove_abandoned(staging)
        for other in sorted(staging.glob(f"{name}-*")):
            if other == folder:
                continue
            # Without locks a part's other folder is a crash's, since it has one writer; the shared files have many.
            state = _writer_of(other)
            if state == "none" or (state == "unknown" and alone):
                shutil.rmtree(other, ignore_errors=True)
            elif alone:
                raise StrataError(
                    f"another process is writing part {name} of {store}: give each process its own --rank, or wait "
                    "for that one"
                )
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(unnamed, ignore_errors=True)
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove a folder; where zarr failed at one file, its threads may for a moment still write others there."""
    for _ in range(_CLEARINGS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.02)


def remove_leftovers(store: Path) -> None:
    """Remove what a crash left of work that is finished, which nobody would find again: the store's, committed parts'.

    What it left of a part that is not committed goes when the part is done again.
    """
    for piece, writer in staged_pieces(store).items():
        name = piece.partition("-")[0]
        finished = name == "store" or (store / PARTS_FOLDER / f"{name}.json").exists()
        if finished and writer == "none":
            shutil.rmtree(store / STAGING_FOLDER / piece, ignore_errors=True)
    if not (store / STAGING_FOLDER).is_symlink():
        _remove_abandoned(store / STAGING_FOLDER)


def _remove_abandoned(staging: Path) -> None:
    """Remove empty folders of processes that died before they named them.

    Where that cannot be told (of another machine's, or a number that another process has by now), long after any living
    one would have.
    """
    for folder in staging.glob("new-*"):
        with suppress(OSError):
            if _is_of_the_dead(folder.name) or time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                folder.rmdir()


def _is_of_the_dead(name: str) -> bool:
    """Whether no process of the number that an unnamed folder's name has is left on this machine."""
    machine, _, process = name.removeprefix("new-").partition("-")[0].partition(".")
    if not machine or machine != _machine() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


@cache
def _machine() -> str:
    """Short name of where numbers of processes mean the same: this start of this machine, this container."""
    try:
        place = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def _lock(handle: int) -> Literal["ours", "another's", "unsupported"]:
    """Try to take the lock of an open folder."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_SECONDS)  # who only looks whether a writer lives holds the lock for an instant
        except OSError:
            return "unsupported"
        else:
            return "ours"
    return "another's"


def staged_pieces(store: Path) -> dict[str, Writer]:
    """Names of what lies in a store's staging folder, and whether a process is writing it.

    A folder that is not yet named has no lock for an instant, so of those made in the last minute it is unknown.
    """
    staging = store / STAGING_FOLDER
    pieces = {} if staging.is_symlink() else {path: _writer_of(path) for path in sorted(staging.glob("*"))}
    now = time.time()
    return {
        path.name: "unknown" if path.name.startswith("new-") and _is_younger(path, now - 60) else writer
        for path, writer in pieces.items()
    }


def _is_younger(path: Path, moment: float) -> bool:
    with suppress(FileNotFoundError):
        return path.lstat().st_mtime > moment
    return False


def _writer_of(folder: Path) -> Writer:
    """Whether a process is writing into a staging folder."""
    if folder.is_symlink() or not folder.is_dir():
        return "none"
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return "none"
    try:
        return {"ours": "none", "another's": "alive", "unsupported": "unknown"}[_lock(handle)]  # type: ignore[return-value]
    finally:
        os.close(handle)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in path order."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def sync_file(path: Path) -> None:
    """Make a file's (or folder's) bytes durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folders(root: Path) -> None:
    """Make the entries of a folder and of every folder below it durable; several at a time share a disk flush."""
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(sync_file, [Path(folder) for folder, _, _ in os.walk(root)]):
            pass


def refuse_committed(store: Path, name: str) -> None:
    """Raise StrataError when the part is committed: a part never changes."""
    if (store / PARTS_FOLDER / f"{name}.json").exists():
        raise StrataError(
            f"part {name} of {store} is already committed and never changes: "
            "run strata extract again to add the parts that are missing"
        )


def commit_part(staged: Path, store: Path, name: str) -> None:
    """Move one staged part into the store, its manifest last.

    Parameters
    ----------
    staged
        Holds ``NAME.zarr/``, ``NAME.parquet`` and ``NAME.json``, all of it durable.
    store
        The store's folder.
    name
        The part's name.

    Raises
    ------
    StrataError
        When the part is already committed: a part never changes.
    """
    parts = store / PARTS_FOLDER
    parts.mkdir(exist_ok=True)
    refuse_committed(store, name)
    _discard(parts / f"{name}.zarr", staged)
    os.rename(staged / f"{name}.zarr", parts / f"{name}.zarr")
    os.replace(staged / f"{name}.parquet", parts / f"{name}.parquet")
    sync_file(parts)
    os.replace(staged / f"{name}.json", parts / f"{name}.json")
    sync_file(parts)


def _discard(leftover: Path, staged: Path) -> None:
    """Move what a crash left without a manifest out of the way; it goes when the staging folder does."""
    if leftover.exists():
        os.rename(leftover, staged / "leftover.zarr")


def link_common(staged: Path, store: Path, relative: str) -> None:
    """Link one staged file into the store, or check that the file already there has the same bytes; not yet durable.

    Raises
    ------
    StrataError
        When another writer put different bytes there.
    """
    target = store / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(staged / relative, target)
    except FileExistsError:
        if hash_file(staged / relative) != hash_file(target):
            raise StrataError(
                f"{target} was written by another run with different bytes: use the same versions of strata and its "
                f"libraries on every node, or another --out; if that run stopped before it wrote {STORE_FILE}, remove "
                "the file"
            ) from None
