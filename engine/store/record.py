"""``store.json`` and the other files that all writers of a store share.

They are deterministic bytes, so any number of processes may create the same store at once: each builds them in its own
staging folder and links them into place, ``store.json`` last. An existing store with the same plan is left alone, which
is the resume.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import StrataError, UsageError
from engine.store.commit import files_below, link_common, staging_folder, sync_file, sync_folders
from engine.store.differences import list_differences
from engine.store.disk import describe_failure
from engine.store.layout import (
    FORMAT_VERSION,
    MODEL_GROUP,
    PARTS_FOLDER,
    PLAN_FILE,
    STAGING_FOLDER,
    STORE_FILE,
    VOCABULARY_FILE,
)
from engine.store.manifest import has_true_sha256, hash_file, parse_json, seal_json
from engine.store.manifest_check import are_file_hashes, is_count, is_inside
from engine.store.model_tables import ModelMatrix, write_model_group
from engine.store.part import parse_manifest
from engine.store.schemas import PLAN_SCHEMA, VOCABULARY_SCHEMA
from engine.store.versions import is_version, refuse_newer

__all__ = ["committed_parts", "create_store", "is_same_store", "missing_files", "parse_record"]

OWN_FIELDS = ("format_version", "files", "sha256")
_NEEDED = ("plan_sha256", "model.blocks", "capture.layers")
_KNOWN = {STORE_FILE, PLAN_FILE, VOCABULARY_FILE, MODEL_GROUP, PARTS_FOLDER, STAGING_FOLDER}


def create_store(
    store: Path,
    *,
    record: Mapping[str, Any],
    plan: pa.Table,
    vocabulary: pa.Table,
    unembedding: ModelMatrix | None,
    final_norm_weight: np.ndarray,
    final_norm_bias: np.ndarray | None,
    attributes: Mapping[str, object],
) -> None:
    """Create a store, or find that it already is the one asked for and write again what it lacks of its common files.

    Parameters
    ----------
    store
        Folder; absent, empty, or a store of the same plan.
    record
        Everything of ``store.json`` except ``format_version``, ``files`` and ``sha256``. It must hold ``plan_sha256``,
        ``model.blocks`` (number of blocks) and ``capture.layers`` (list of stored layers), which readers rely on.
    plan, vocabulary
        Tables of ``PLAN_SCHEMA`` and ``VOCABULARY_SCHEMA``.
    unembedding, final_norm_weight, final_norm_bias, attributes
        As for ``write_model_group``.

    Raises
    ------
    UsageError
        When the folder holds a store of another plan (each differing setting is listed) or is not a store at all.
    StrataError
        When the store has a newer major format, a file that it lacks cannot be written as it was, or the disk fails.
    ValueError
        When the record or a table lacks what it must hold.
    """
    store = Path(store)
    _check_input(record, plan, vocabulary)
    exists = is_same_store(store, record)
    missing = missing_files(store) if exists else ()
    if exists and not missing:
        return
    try:
        store.mkdir(parents=True, exist_ok=True)
        with staging_folder(store, "store", alone=False) as staged:
            pq.write_table(plan, staged / PLAN_FILE, compression="zstd")
            pq.write_table(vocabulary, staged / VOCABULARY_FILE, compression="zstd")
            write_model_group(
                staged / MODEL_GROUP,
                unembedding=unembedding,
                final_norm_weight=final_norm_weight,
                final_norm_bias=final_norm_bias,
                attributes=attributes,
            )
            files = [path.relative_to(staged).as_posix() for path in files_below(staged)]
            hashes = {name: hash_file(staged / name) for name in files}
            if exists:
                _check_restored(store, {name: hashes.get(name) for name in missing})
                _link_all(staged, store, missing)
                return
            (staged / STORE_FILE).write_bytes(
                seal_json({**record, "format_version": FORMAT_VERSION, "files": hashes}),
            )
            _link_all(staged, store, [*files, STORE_FILE])
    except OSError as error:
        need = plan.nbytes + vocabulary.nbytes + _model_bytes(unembedding, final_norm_weight, final_norm_bias)
        raise StrataError(
            f"the store could not be created: its tables could not be written {describe_failure(error, store, need)}; "
            "make room and run the same command again, or choose another --out"
        ) from error


def _model_bytes(unembedding: ModelMatrix | None, *vectors: np.ndarray | None) -> int:
    matrix = 0 if unembedding is None else math.prod(unembedding.shape) * np.dtype(unembedding.dtype).itemsize
    return matrix + sum(vector.nbytes for vector in vectors if vector is not None)


def _check_input(record: Mapping[str, Any], plan: pa.Table, vocabulary: pa.Table) -> None:
    if set(record) & set(OWN_FIELDS):
        raise ValueError(f"a record may not hold {', '.join(OWN_FIELDS)}")
    for path in _NEEDED:
        if not _holds(record, path):
            raise ValueError(f"the record lacks {path}")
    if not plan.schema.equals(PLAN_SCHEMA) or not vocabulary.schema.equals(VOCABULARY_SCHEMA):
        raise ValueError("plan and vocabulary must have PLAN_SCHEMA and VOCABULARY_SCHEMA")


def _holds(record: Mapping[str, Any], path: str) -> bool:
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def is_same_store(store: Path, record: Mapping[str, Any]) -> bool:
    """Whether the folder already holds the store that ``record`` describes.

    Raises
    ------
    UsageError
        When it holds a store of another plan, each differing setting listed, or something that is no store.
    """
    if not store.exists():
        return False
    if not store.is_dir():
        raise UsageError(f"{store} is a file: choose a folder for --out")
    if (store / STORE_FILE).exists():
        stored = parse_record((store / STORE_FILE).read_bytes(), str(store))
        if stored["plan_sha256"] == record["plan_sha256"]:
            return True
        differences = "\n".join(
            f"  {line}"
            for line in list_differences(_settings(stored), _settings({**record, "format_version": FORMAT_VERSION}))
        )
        raise UsageError(
            f"{store} was extracted with other settings:\n{differences}\nuse these settings again, or another --out"
        )
    foreign = sorted(path.name for path in store.iterdir() if path.name not in _KNOWN)
    if foreign:
        raise UsageError(
            f"{store} is not empty and not a strata store (it holds {foreign[0]}): choose a new folder for --out"
        )
    # Parts whose store.json is lost must be of the same plan. A damaged manifest says nothing of that; once there is a
    # store.json again, repair removes its part.
    for path in (store / PARTS_FOLDER).glob("*.json"):
        if has_true_sha256(content := path.read_bytes()):
            parse_manifest(content, str(path), record["plan_sha256"])
    return False


def missing_files(store: Path) -> tuple[str, ...]:
    """Names of the files outside of ``parts/`` that ``store.json`` lists and that are not there."""
    record = parse_record((store / STORE_FILE).read_bytes(), str(store))
    return tuple(name for name in record["files"] if not (store / name).exists())


def _check_restored(store: Path, hashes: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Refuse to put a file into a store that is not the one that its ``store.json`` knows."""
    stored = parse_record((store / STORE_FILE).read_bytes(), str(store))["files"]
    for name, entry in hashes.items():
        if entry != stored[name]:
            raise StrataError(
                f"{store} lacks {name}, and what this run would write is not what {STORE_FILE} lists: use the versions "
                "of strata and its libraries that the parts' manifests name under run.versions, or copy the file from "
                "another copy of the store"
            )


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("files", "sha256", "plan_sha256")}


def _link_all(staged: Path, store: Path, names: Sequence[str]) -> None:
    for name in names:
        sync_file(staged / name)
    sync_folders(staged)
    (store / PARTS_FOLDER).mkdir(exist_ok=True)
    for name in names:
        if name == STORE_FILE:
            _sync_parents(store, names)  # what it lists is durable first
        link_common(staged, store, name)
    _sync_parents(store, names)


def _sync_parents(store: Path, names: Sequence[str]) -> None:
    """Make the entries of the folders durable that the files lie in, up to the store's own."""
    for folder in {parent for name in names for parent in PurePosixPath(name).parents}:
        sync_file(store / folder)


def parse_record(content: bytes, store: str) -> dict[str, Any]:
    """Read ``store.json``.

    Raises
    ------
    StrataError
        When it is damaged or of a newer major format; unknown fields and newer minor formats are fine.
    """
    record = parse_json(content, f"{store}/{STORE_FILE}")
    version = record.get("format_version")
    if not is_version(version):
        raise StrataError(f"{store}/{STORE_FILE} has format_version {version!r}, not a version: the store is damaged")
    refuse_newer(version, store)
    for path in (*_NEEDED, *OWN_FIELDS):
        if not _holds(record, path):
            raise StrataError(f"{store}/{STORE_FILE} lacks {path}: it was edited or damaged, restore it from a copy")
    wrong = [name for name, is_right in _SHAPES.items() if not is_right(record)]
    if wrong:
        raise StrataError(f"{store}/{STORE_FILE} has a {wrong[0]} that is none: it was edited or damaged")
    return record


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(is_count(number) for number in value)


def _are_optional(capture: Mapping[str, Any], names: Sequence[str], *kinds: type) -> bool:
    return all(isinstance(capture.get(name), (*kinds, type(None))) for name in names)


# What readers rely on where they find it.
_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "plan_sha256": lambda record: isinstance(record["plan_sha256"], str),
    "sha256": lambda record: isinstance(record["sha256"], str),
    "model.blocks": lambda record: is_count(record["model"]["blocks"]),
    "capture.layers": lambda record: _are_numbers(record["capture"]["layers"]),
    "list of files": lambda record: are_file_hashes(record["files"]) and all(map(is_inside, record["files"])),
    "capture": lambda record: (
        all(_are_numbers(record["capture"].get(name) or []) for name in ("residual_layers", "lens_layers", "blocks"))
        and _are_optional(record["capture"], ("tensors", "queries", "roles"), list)
        and _are_optional(record["capture"], ("dtypes", "tensor_roles", "tensor_blocks"), dict)
    ),
    "source": lambda record: isinstance(record.get("source", {}), dict),
    "list of prompts": lambda record: (
        isinstance(record.get("prompts", []), list)
        and all(isinstance(prompt, dict) and "prompt_id" in prompt for prompt in record.get("prompts", []))
    ),
}


def committed_parts(store: Path, plan_sha256: str | None = None) -> dict[int, dict[str, Any]]:
    """Return the manifests of the committed parts, by part number.

    Parameters
    ----------
    store
        The store's folder.
    plan_sha256
        The plan that they must be of; that of ``store.json`` when None.

    Raises
    ------
    StrataError
        When a manifest is damaged or of another plan: whether its part is finished cannot be told.
    """
    store = Path(store)
    manifests = sorted(path for path in (store / PARTS_FOLDER).glob("*.json") if path.stem.isdecimal())
    if not manifests:
        return {}
    plan = plan_sha256 or parse_record((store / STORE_FILE).read_bytes(), str(store))["plan_sha256"]
    return {int(path.stem): parse_manifest(path.read_bytes(), str(path), plan) for path in manifests}
