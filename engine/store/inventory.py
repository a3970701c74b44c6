"""What a store's own records list: ``store.json`` and the manifests, read with suspicion, for who checks the rest."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow.compute as pc

from engine.errors import StrataError
from engine.store.layout import (
    FORMAT_VERSION,
    MODEL_GROUP,
    PARTS_FOLDER,
    PLAN_FILE,
    STAGING_FOLDER,
    STORE_FILE,
    part_name,
)
from engine.store.limits import RECORD_BYTES
from engine.store.location import Location
from engine.store.manifest import FileHash, has_true_sha256, hash_file, parse_json
from engine.store.manifest_check import check_manifest
from engine.store.record import parse_record
from engine.store.schemas import PLAN_SCHEMA
from engine.store.tables import read_table
from engine.store.versions import refuse_newer

__all__ = ["Inventory", "Problem", "check_file", "is_ours", "part_of", "read_planned", "take_inventory"]

_REDO = "strata repair removes it, and the same strata extract does the part again"


class Problem(NamedTuple):
    """One thing that is wrong: the file, relative to the store, and what is wrong with it."""

    file: str
    message: str


class Inventory(NamedTuple):
    """Records of a store.

    Attributes
    ----------
    record
        ``store.json``.
    manifests
        By part number, those that have the shape of one; each lists files of its own part alone.
    problems
        What is wrong with the records themselves.
    """

    record: dict[str, Any]
    manifests: dict[int, dict[str, Any]]
    problems: tuple[Problem, ...]

    @property
    def common(self) -> dict[str, FileHash]:
        """Hashes of the files outside of ``parts/``, by path relative to the store."""
        return dict(self.record["files"])

    @property
    def listed(self) -> dict[str, FileHash]:
        """Hashes of all files that a record lists, by path relative to the store."""
        listed = self.common
        for manifest in self.manifests.values():
            listed |= {f"{PARTS_FOLDER}/{name}": entry for name, entry in manifest["files"].items()}
        return listed


def take_inventory(store: Path) -> Inventory:
    """Read all records of a local store.

    Parameters
    ----------
    store
        The store's folder.

    Raises
    ------
    StrataError
        When there is no store at all, its ``store.json`` lists no files or some outside of the store, it or a part has
        a newer major format, or a manifest is longer than those of this one: what that says cannot be told.
    """
    if (store / STORE_FILE).is_symlink() or not (store / STORE_FILE).is_file():
        lost = any((store / PARTS_FOLDER).glob("*.json"))
        advice = "; it has parts: the strata extract that made them writes it again" if lost else ""
        raise StrataError(f"{store} has no {STORE_FILE}: it is not a strata store{advice}")
    content = Location(str(store)).read(STORE_FILE, RECORD_BYTES)
    record = parse_record(content, str(store))
    problems: list[Problem] = []
    if not has_true_sha256(content):
        problems.append(Problem(STORE_FILE, "does not have the sha256 that it states: it was edited or damaged"))
    if any(name.split("/")[0] in (PARTS_FOLDER, STORE_FILE) for name in record["files"]):
        raise StrataError(f"{store}/{STORE_FILE} lists files of {PARTS_FOLDER}, or itself: it was edited or damaged")
    manifests: dict[int, dict[str, Any]] = {}
    parts = store / PARTS_FOLDER
    for path in [] if parts.is_symlink() else sorted(parts.glob("*.json")):
        manifest, found = _read_manifest(store, path, record)
        problems += found
        if manifest is not None:
            manifests[int(path.stem)] = manifest
    return Inventory(record, manifests, tuple(problems))


def part_of(file: str) -> int | None:
    """Tell from its name, relative to the store, which part a file belongs to; None for others."""
    folder, _, rest = file.partition("/")
    stem, dot, suffix = rest.partition("/")[0].partition(".")
    named = folder == PARTS_FOLDER and dot and suffix in ("json", "parquet", "zarr")
    return int(stem) if named and stem.isdecimal() and part_name(int(stem)) == stem else None


def read_planned(store: Path, inventory: Inventory) -> dict[int, int] | None:
    """Count planned samples by number of part; None where the plan is not as it was written."""
    entry = inventory.common.get(PLAN_FILE)
    if entry is None or (store / PLAN_FILE).is_symlink() or check_file(store, PLAN_FILE, entry) is not None:
        return None
    try:
        counts = pc.value_counts(read_table(Location(str(store)), PLAN_FILE, PLAN_SCHEMA)["part"])
    except StrataError:
        return None
    return {int(count["values"]): int(count["counts"]) for count in counts.to_pylist()}


def check_file(store: Path, name: str, entry: FileHash) -> str | None:
    """Compare a listed file with its size and hash.

    Returns
    -------
    str or None
        What is wrong with it; None also where it, or a folder that it lies in, is a symbolic link, which is a problem
        of its own.
    """
    path = store / name
    links = (store.joinpath(*PurePosixPath(name).parts[:depth]) for depth in range(1, name.count("/") + 2))
    if any(link.is_symlink() for link in links):
        return None
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, {entry['bytes']} were written"
    if hash_file(path)["sha256"] != entry["sha256"]:
        return "has another sha256 than when it was written"
    return None


def _read_manifest(store: Path, path: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Read one manifest; None when nothing in it can be relied on."""
    name = f"{PARTS_FOLDER}/{path.name}"
    if path.is_symlink():
        return None, []  # reported as a link
    _refuse_longer(store, name)
    try:
        content = Location(str(store)).read(name, RECORD_BYTES)
        manifest = parse_json(content, name)
    except (StrataError, OSError) as error:
        return None, [Problem(name, f"is no manifest ({error}): {_REDO}")]
    sealed = has_true_sha256(content)
    if sealed:  # else the version may be what is damaged
        refuse_newer(manifest.get("format_version"), f"{store}/{name}")  # what it says cannot be judged, nor removed
    try:
        wrong = check_manifest(manifest)
        if wrong is not None:
            raise StrataError(wrong)
        if part_of(name) is None or manifest["part"] != int(path.stem):
            raise StrataError("states another part number than its name")
    except StrataError as error:
        return None, [Problem(name, f"is no manifest ({error}): {_REDO}")]
    problems = []
    if not sealed:
        problems.append(Problem(name, "does not have the sha256 that it states: it was edited or damaged"))
    if manifest.get("plan_sha256") != record["plan_sha256"]:
        problems.append(Problem(name, "belongs to another plan than store.json"))
    return manifest, problems


def _refuse_longer(store: Path, name: str) -> None:
    """Stop at a manifest that is too long to be read: it may be of a newer major format, whose parts nobody removes."""
    if (store / name).stat().st_size > RECORD_BYTES:
        raise StrataError(
            f"{store}/{name} has more than {RECORD_BYTES:,} bytes, which no strata up to format {FORMAT_VERSION} "
            "writes: upgrade strata if a later one made this part; else the file is damaged: move it out of the store, "
            "and strata repair and the same strata extract do the part again"
        )


def is_ours(file: str) -> bool:
    """Whether a path of a store lies where nobody but strata keeps anything."""
    return file.partition("/")[0] in (PARTS_FOLDER, MODEL_GROUP, STAGING_FOLDER)
