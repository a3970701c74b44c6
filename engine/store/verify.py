"""Checking a store against its own records: structure, sizes, hashes. Nothing is changed, nothing is trusted.

Everything that a manifest or ``store.json`` lists must be there unchanged, and nothing else may be there.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import StrataError
from engine.store.layout import PARTS_FOLDER, PLAN_FILE, STAGING_FOLDER, STORE_FILE, part_name
from engine.store.manifest import FileHash, has_true_sha256, hash_file, parse_json
from engine.store.record import parse_record
from engine.store.shards import compression_threads

__all__ = ["Problem", "Verification", "verify"]

_REDO = "run the same strata extract again"


class Problem(NamedTuple):
    """One thing that is wrong: the file, relative to the store, and what is wrong with it."""

    file: str
    message: str


class Verification(NamedTuple):
    """What ``verify`` found: problems in file order, and notes about what is unusual but no problem."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def verify(store: Path, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check structure and sha256 of a local store.

    Parameters
    ----------
    store
        The store's folder.
    progress
        Called with (bytes hashed, bytes to hash) after each file.

    Returns
    -------
    Verification
        No problems means that every planned part is there, bit for bit as it was written.

    Raises
    ------
    StrataError
        When there is no store at all, or it has a newer major format.
    """
    store = Path(store)
    if not (store / STORE_FILE).is_file():
        raise StrataError(f"{store} has no {STORE_FILE}: it is not a strata store")
    record_bytes = (store / STORE_FILE).read_bytes()
    record = parse_record(record_bytes, str(store))
    problems: list[Problem] = []
    if not has_true_sha256(record_bytes):
        problems.append(Problem(STORE_FILE, "does not have the sha256 that it states: it was edited or damaged"))

    if not _are_file_hashes(record.get("files")):
        raise StrataError(f"{store}/{STORE_FILE} has no list of files: it was edited or damaged")
    listed: dict[str, FileHash] = dict(record["files"])
    committed: dict[int, dict[str, Any]] = {}
    for path in sorted((store / PARTS_FOLDER).glob("*.json")):
        manifest, found = _read_manifest(path, record)
        problems += found
        if manifest is not None:
            committed[int(path.stem)] = manifest
            listed |= {f"{PARTS_FOLDER}/{name}": entry for name, entry in manifest["files"].items()}
    problems += _check_plan(store, committed)
    problems += _check_unlisted(store, listed)
    problems += _check_files(store, listed, progress)
    return Verification(tuple(sorted(problems)), tuple(_notes(store)))


def _read_manifest(path: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Read one manifest; None when nothing in it can be relied on."""
    name = f"{PARTS_FOLDER}/{path.name}"
    content = path.read_bytes()
    try:
        manifest = parse_json(content, name)
        if part_name(int(path.stem)) != path.stem or manifest["part"] != int(path.stem):
            raise StrataError("states another part number than its name")
        if not (isinstance(manifest["samples"], int) and isinstance(manifest["bad_samples"], list)):
            raise StrataError("has no count of samples")
        if not _are_file_hashes(manifest["files"]):
            raise StrataError("has no list of files")
    except (StrataError, KeyError, ValueError) as error:
        return None, [Problem(name, f"is no manifest ({error}): remove it and {_REDO}")]
    problems = []
    if not has_true_sha256(content):
        problems.append(Problem(name, "does not have the sha256 that it states: it was edited or damaged"))
    if manifest.get("plan_sha256") != record.get("plan_sha256"):
        problems.append(Problem(name, "belongs to another plan than store.json"))
    return manifest, problems


def _are_file_hashes(value: object) -> bool:
    """Whether a value has the shape {path: {sha256: text, bytes: number}}."""
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int)
        for entry in value.values()
    )


def _check_plan(store: Path, committed: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
    """Compare committed parts and their numbers of samples with the plan."""
    try:
        counts = pc.value_counts(pq.read_table(store / PLAN_FILE)["part"])
    except (OSError, KeyError, pa.ArrowInvalid):
        return  # the plan's own damage is reported with its hash
    planned = {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
    for number in sorted(planned):
        name = f"{PARTS_FOLDER}/{part_name(number)}.json"
        if not (store / name).exists():
            yield Problem(name, f"is missing, the part is planned: {_REDO}")
    for number, manifest in committed.items():
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
        if relative.parts[0] == STAGING_FOLDER:
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
                yield Problem(entry, f"belongs to no manifest (an interrupted commit leaves such): {_REDO}")
            reported.add(entry)
        else:
            yield Problem(name, "is listed by no manifest nor by store.json: remove it")


def _check_files(
    store: Path, listed: Mapping[str, FileHash], progress: Callable[[int, int], None] | None
) -> Iterator[Problem]:
    """Compare each listed file with its size and hash, several at a time."""
    total, done = sum(int(entry["bytes"]) for entry in listed.values()), 0
    with ThreadPoolExecutor(compression_threads()) as pool:
        results = pool.map(lambda name: _check_file(store, name, listed[name]), listed)
        for (name, entry), message in zip(listed.items(), results, strict=True):
            done += int(entry["bytes"])
            if progress is not None:
                progress(done, total)
            if message is not None:
                yield Problem(name, message)


def _check_file(store: Path, name: str, entry: FileHash) -> str | None:
    path = store / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "is listed outside of the store"
    if path.is_symlink():
        return None  # reported as a link
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, {entry['bytes']} were written"
    if hash_file(path)["sha256"] != entry["sha256"]:
        return "has another sha256 than when it was written"
    return None


def _notes(store: Path) -> Iterator[str]:
    staged = sorted(path.name for path in (store / STAGING_FOLDER).glob("*"))
    if staged:
        names = ", ".join(staged[:3])
        yield f"{STAGING_FOLDER} holds {len(staged)} unfinished pieces ({names}): being written, or left by a crash"
