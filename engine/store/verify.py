"""Checking a store against its own records: structure, sizes, hashes. Nothing is changed, nothing is trusted.

Everything that a manifest or ``store.json`` lists must be there unchanged, and nothing else may be there.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from engine.cores import part_threads
from engine.store.deep import check_deeply
from engine.store.inventory import Inventory, Problem, check_file, is_ours, read_planned, take_inventory
from engine.store.layout import PARTS_FOLDER, PLAN_FILE, STAGING_FOLDER, STORE_FILE, part_name
from engine.store.manifest import FileHash

__all__ = ["Problem", "Verification", "verify"]

_REDO = "run the same strata extract again"
_REPAIR = "strata repair removes it"


class Verification(NamedTuple):
    """What ``verify`` found: problems in file order, and notes about what is unusual but no problem."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def verify(store: Path, progress: Callable[[int, int], None] | None = None, *, deep: bool = False) -> Verification:
    """Check structure and sha256 of a local store, and on request every value.

    Parameters
    ----------
    store
        The store's folder.
    progress
        Called with (bytes done, bytes to do) after each file; bytes are hashed, and then, with ``deep``, decoded.
    deep
        Whether to decode every chunk and compare what the files say with one another, where all files are as they were
        written (else that is said, and is to be mended first).

    Returns
    -------
    Verification
        No problems means that every planned part is there, bit for bit as it was written.

    Raises
    ------
    StrataError
        When there is no store at all, or it or a part has, or may have, a newer major format.
    """
    store = Path(store)
    inventory = take_inventory(store)
    listed = inventory.listed
    problems = list(inventory.problems)
    problems += _check_plan(store, inventory)
    missing = {problem.file for problem in problems if not (store / problem.file).exists()}  # not yet extracted
    problems += _check_unlisted(store, listed)
    problems += _check_files(store, listed, progress)
    notes = list(_notes(store))
    if deep and all(problem.file in missing for problem in problems):
        problems += check_deeply(store, progress)
    elif deep:
        notes.append("values were not looked at, because files are damaged: strata repair, extract, and verify again")
    return Verification(tuple(sorted(problems)), tuple(notes))


def _check_plan(store: Path, inventory: Inventory) -> Iterator[Problem]:
    """Compare committed parts and their numbers of samples with the plan, unless that is damaged itself."""
    planned = read_planned(store, inventory)
    if planned is None:
        if inventory.common.get(PLAN_FILE) is None:
            yield Problem(STORE_FILE, f"does not list {PLAN_FILE}: it was edited or damaged")
        elif check_file(store, PLAN_FILE, inventory.common[PLAN_FILE]) is None:
            yield Problem(PLAN_FILE, "holds no plan, although it is as it was written")
        return
    for number in sorted(planned):
        name = f"{PARTS_FOLDER}/{part_name(number)}.json"
        if not (store / name).exists():
            yield Problem(name, f"is missing, the part is planned: {_REDO}")
    for number, manifest in inventory.manifests.items():
        name = f"{PARTS_FOLDER}/{part_name(number)}.json"
        accounted = manifest["samples"] + len(manifest["bad_samples"])
        if number not in planned:
            yield Problem(name, "is a part that the plan does not have")
        elif planned[number] != accounted:
            yield Problem(name, f"accounts for {accounted} samples, {planned[number]} are planned")


def _check_unlisted(store: Path, listed: Mapping[str, FileHash]) -> Iterator[Problem]:
    """Find symbolic links, and files that nothing lists (once per part entry that no manifest covers)."""
    covered = {"/".join(PurePosixPath(name).parts[:2]) for name in listed}
    reported = set()
    for path in sorted(store.rglob("*")):
        relative = path.relative_to(store)
        name = relative.as_posix()
        if relative.parts[0] == STAGING_FOLDER and len(relative.parts) > 1:
            continue
        if path.is_symlink():
            yield Problem(name, "is a symbolic link: a store holds its own bytes")
            continue
        manifest = len(relative.parts) == 2 and relative.parts[0] == PARTS_FOLDER and path.suffix == ".json"
        if path.is_dir() or name in listed or name == STORE_FILE or manifest:
            continue
        entry = "/".join(relative.parts[:2])
        if relative.parts[0] == PARTS_FOLDER and entry not in covered:
            if entry not in reported:
                yield Problem(entry, f"belongs to no manifest (an interrupted commit leaves such): {_REPAIR}")
            reported.add(entry)
        else:
            advice = _REPAIR if is_ours(name) else "it may be yours, move it out of the store"
            yield Problem(name, f"is listed by no manifest nor by store.json: {advice}")


def _check_files(
    store: Path, listed: Mapping[str, FileHash], progress: Callable[[int, int], None] | None
) -> Iterator[Problem]:
    """Compare each listed file with its size and hash, several at a time."""
    total, done = sum(int(entry["bytes"]) for entry in listed.values()), 0
    with ThreadPoolExecutor(part_threads()) as pool:
        results = pool.map(lambda name: check_file(store, name, listed[name]), listed)
        for (name, entry), message in zip(listed.items(), results, strict=True):
            done += int(entry["bytes"])
            if progress is not None:
                progress(done, total)
            if message is not None:
                yield Problem(name, message)


def _notes(store: Path) -> Iterator[str]:
    staged = sorted(path.name for path in (store / STAGING_FOLDER).glob("*"))
    if staged:
        names = ", ".join(staged[:3])
        yield f"{STAGING_FOLDER} holds {len(staged)} unfinished pieces ({names}): being written, or left by a crash"
