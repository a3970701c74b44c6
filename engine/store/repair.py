"""Removing what the next extraction must do again: leftovers, damaged parts, and on request parts with bad samples.

What goes is planned from a verification and the store's own records, without a disk. It then goes part by part, the
manifest first: from that moment on the part does not exist, so a crash in the middle leaves a leftover and never a part
that looks whole. Nothing is removed that does not lie in the store itself; of a symbolic link only the link.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import StrataError
from engine.store.commit import Writer, staged_pieces, staging_folder, sync_file
from engine.store.inventory import Inventory, Problem, is_ours, part_of, read_planned, take_inventory
from engine.store.layout import PARTS_FOLDER, STAGING_FOLDER, STORE_FILE, part_name
from engine.store.verify import verify

__all__ = ["Removal", "Repair", "plan_repair", "repair"]

_SUFFIXES = (".json", ".parquet", ".zarr")  # the manifest first
_LEFT = "is left from a process that ended before its commit"
_UNKNOWN = "may be being written (locks do not tell here, or it is less than a minute old): run repair again later"
_CHANGED = "was changed by another process while it was checked: run repair again"


class Removal(NamedTuple):
    """What is removed together.

    Attributes
    ----------
    name
        A file, or a part as ``parts/NNNNNNNN``, relative to the store.
    reason
        Why.
    part
        Number of the part where it is one, manifest, table and arrays; else None.
    """

    name: str
    reason: str
    part: int | None = None


class Repair(NamedTuple):
    """What repairing a store means.

    Attributes
    ----------
    removals
        What is removed, in this order.
    redone
        Planned parts that are then missing, which the next ``strata extract`` does.
    rewritten
        Files outside of ``parts/`` that are then missing, which it writes again.
    kept
        What is left as it is although something is wrong with it, or somebody is writing it.
    """

    removals: tuple[Removal, ...]
    redone: tuple[int, ...]
    rewritten: tuple[str, ...]
    kept: tuple[Problem, ...]


def repair(
    store: Path,
    *,
    retry_bad: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Repair:
    """Remove leftovers and damaged parts of a local store, so that the same extraction does exactly those again.

    Parameters
    ----------
    store
        The store's folder.
    retry_bad
        Whether parts with samples that could not be stored go too.
    dry_run
        Whether to say only what would be done.
    progress
        As for ``verify``, which comes first.

    Returns
    -------
    Repair
        What was done.

    Raises
    ------
    StrataError
        When there is no store, or its ``store.json`` is damaged, so that nothing else can be judged, or a part has, or
        may have, a newer major format; nothing is then removed.
    """
    store = Path(store)
    seen = _manifests_seen(store)
    problems = verify(store, progress).problems
    inventory = take_inventory(store)
    plan = plan_repair(
        problems,
        inventory,
        staged_pieces(store),
        planned=read_planned(store, inventory),
        exists=lambda file: os.path.lexists(store / file),
        retry_bad=retry_bad,
    )
    if dry_run:
        return plan
    changed = [removal for removal in plan.removals if not _remove(store, removal, seen)]
    return plan._replace(
        removals=tuple(removal for removal in plan.removals if removal not in changed),
        kept=(*plan.kept, *(Problem(removal.name, _CHANGED) for removal in changed)),
    )


def plan_repair(
    problems: Sequence[Problem],
    inventory: Inventory,
    staged: Mapping[str, Writer],
    *,
    planned: Collection[int] | None,
    exists: Callable[[str], bool],
    retry_bad: bool = False,
) -> Repair:
    """Decide what to remove.

    Parameters
    ----------
    problems
        Of ``verify``.
    inventory
        The store's records.
    staged
        Names of what lies in the staging folder, and whether it is being written.
    planned
        Numbers of the planned parts; None where the plan is damaged.
    exists
        Whether a file, relative to the store, is there at all.
    retry_bad
        Whether parts with samples that could not be stored are removed too.

    Raises
    ------
    StrataError
        When ``store.json`` is damaged.
    """
    parts, files, kept = _sort_problems(problems, inventory, exists)
    for number, manifest in inventory.manifests.items() if retry_bad else ():
        if manifest["bad_samples"]:
            parts.setdefault(number, _describe_bad(manifest["bad_samples"]))
    writing = {number for name, writer in staged.items() if writer != "none" and (number := _part_of_piece(name)) >= 0}
    removed = sorted(parts.keys() - writing)
    kept += [Problem(_part_path(number), "is being written at this moment") for number in sorted(writing & set(parts))]
    kept += [Problem(f"{STAGING_FOLDER}/{name}", _UNKNOWN) for name, writer in staged.items() if writer == "unknown"]
    files += [Removal(f"{STAGING_FOLDER}/{name}", _LEFT) for name, writer in staged.items() if writer == "none"]
    remaining = inventory.manifests.keys() - set(removed)
    missing = set(removed) if planned is None else set(planned) - remaining
    rewritten = [name for name in inventory.common if any(_covers(problem.file, name) for problem in problems)]
    return Repair(
        (*(Removal(_part_path(number), parts[number], number) for number in removed), *files),
        tuple(sorted(missing)),
        tuple(rewritten),
        tuple(kept),
    )


def _sort_problems(
    problems: Sequence[Problem], inventory: Inventory, exists: Callable[[str], bool]
) -> tuple[dict[int, str], list[Removal], list[Problem]]:
    """Tell parts that go as a whole (by number, why), single files that go, and problems that stay."""
    listed = inventory.listed
    parts: dict[int, str] = {}
    files: list[Removal] = []
    kept: list[Problem] = []
    for file, message in problems:
        number = part_of(file)
        if file == STORE_FILE:
            raise StrataError(
                f"{STORE_FILE} {message}. Nothing else can be judged without it, and nothing was removed: restore it "
                "from a copy; or move it away, and the same strata extract writes it again and keeps its parts"
            )
        if file in (PARTS_FOLDER, STAGING_FOLDER):
            kept.append(Problem(file, f"{message}; put the folder itself in its place"))
        elif number is not None and (number not in inventory.manifests or _belongs(file, number, listed)):
            if exists(file) or file in listed:  # else it is the missing manifest of a part that is not there
                parts.setdefault(number, f"{file} {message}")
        elif exists(file) and (file in inventory.common or is_ours(file)):
            files.append(Removal(file, message))
        elif exists(file):
            kept.append(Problem(file, message))
    return parts, files, kept


def _belongs(file: str, number: int, listed: Collection[str]) -> bool:
    """Whether a file is one of a committed part's own, or a folder that they lie in."""
    return file == f"{_part_path(number)}.json" or any(_covers(file, name) for name in listed)


def _covers(file: str, name: str) -> bool:
    """Whether a file is another one, or the folder that it lies in (a symbolic link in place of a folder, say)."""
    return name == file or name.startswith(f"{file}/")


def _part_path(number: int) -> str:
    return f"{PARTS_FOLDER}/{part_name(number)}"


def _part_of_piece(name: str) -> int:
    """Tell which part a piece of the staging folder is of; -1 for others."""
    number = part_of(f"{PARTS_FOLDER}/{name.partition('-')[0]}.json")
    return -1 if number is None else number


def _describe_bad(samples: Sequence[Mapping[str, Any]]) -> str:
    first = samples[0]
    more = f" and {len(samples) - 1} more" if len(samples) > 1 else ""
    return f"lacks {first['sample_id']} ({first['reason']}){more}"


def _manifests_seen(store: Path) -> dict[str, tuple[int, int]]:
    """Note, by name, what tells a manifest from one that another process puts in its place."""
    found = {path.name: path.lstat() for path in (store / PARTS_FOLDER).glob("*.json")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def _remove(store: Path, removal: Removal, seen: Mapping[str, tuple[int, int]]) -> bool:
    """Remove what was planned; False where another process works on it or has put something new in its place."""
    if removal.part is not None:
        return _remove_part(store, removal.part, seen)
    path = store / removal.name
    # A folder above it that has become a link leads out of the store.
    if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(store) and parent != store):
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=removal.name.startswith(STAGING_FOLDER))
    else:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # folders that held nothing else
        for parent in path.parents:
            if parent in (store, store / PARTS_FOLDER, store / STAGING_FOLDER):
                break
            parent.rmdir()
    return True


def _remove_part(store: Path, number: int, seen: Mapping[str, tuple[int, int]]) -> bool:
    """Move a part into a staging folder of its own, which no writer shares, and away with it."""
    name, parts = part_name(number), store / PARTS_FOLDER
    try:
        with staging_folder(store, name, alone=True) as folder:
            if _manifests_seen(store).get(f"{name}.json") != seen.get(f"{name}.json"):
                return False
            for suffix in _SUFFIXES:
                if os.path.lexists(parts / f"{name}{suffix}"):
                    os.rename(parts / f"{name}{suffix}", folder / f"{name}{suffix}")
                    sync_file(parts)
    except StrataError:
        return False
    return True
