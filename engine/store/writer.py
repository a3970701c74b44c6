"""Writing one part: stage its Zarr group, table and manifest, make them durable, then commit.

Each shard is written once, front to back. While more is being compressed, helper threads make durable what is written,
so that the disk is not waited for at the end.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
from zarr.storage import LocalStore

from engine.cores import part_threads
from engine.errors import StrataError
from engine.store.codecs import create_array
from engine.store.commit import (
    SYNC_THREADS,
    commit_part,
    files_below,
    refuse_committed,
    staging_folder,
    sync_file,
    sync_folders,
)
from engine.store.consolidate import consolidate
from engine.store.content import Coordinate, PartArray, PartContent, Selection, Slab, Values
from engine.store.disk import describe_failure
from engine.store.dtypes import BFLOAT16_BITS, Rounding, held_dtype, round_mantissa, round_to_dtype, widen_bfloat16
from engine.store.layout import FORMAT_VERSION, ArrayShape, part_name, predict_size
from engine.store.manifest import FileHash, hash_file, parse_json, seal_json
from engine.store.memory import keep_freed_chunks
from engine.store.schemas import PART_SAMPLES_SCHEMA, THUMBNAIL_SAMPLES_SCHEMA
from engine.store.shards import write_shards

__all__ = ["write_part"]


def write_part(store: Path, content: PartContent, *, plan_sha256: str) -> dict[str, object]:
    """Write and commit one part.

    Parameters
    ----------
    store
        Folder of a store made by ``create_store``.
    content
        Arrays, coordinates and samples of the part.
    plan_sha256
        The plan that the part belongs to.

    Returns
    -------
    dict
        The manifest, with its ``sha256``.

    Raises
    ------
    StrataError
        When the part is already committed, another process is writing it, the disk is full, or fails otherwise.
        Committed parts stay valid, and the new one is not there.
    ValueError
        When a slab, coordinate or table is not what it was announced to be.
    """
    store, name = Path(store), part_name(content.number)
    refuse_committed(store, name)
    if content.samples.schema not in (PART_SAMPLES_SCHEMA, THUMBNAIL_SAMPLES_SCHEMA):
        raise ValueError(
            f"samples of part {name} have the schema\n{content.samples.schema}\nneither PART_SAMPLES_SCHEMA nor "
            "THUMBNAIL_SAMPLES_SCHEMA"
        )
    keep_freed_chunks()
    try:
        with staging_folder(store, name, alone=True) as staged:
            files = _write_zarr(staged, f"{name}.zarr", content)
            pq.write_table(content.samples, staged / f"{name}.parquet", compression="zstd")
            files[f"{name}.parquet"] = _seal(staged / f"{name}.parquet")
            sealed = seal_json(_manifest(content, plan_sha256, staged / f"{name}.zarr", files))
            (staged / f"{name}.json").write_bytes(sealed)
            sync_file(staged / f"{name}.json")
            sync_folders(staged)
            commit_part(staged, store, name)
    except OSError as error:
        need = sum(predict_size(array.layout for array in content.arrays).raw_bytes.values())
        raise StrataError(
            f"part {name} could not be written {describe_failure(error, store, need)}; finished parts are valid, make "
            "room and run the same command again"
        ) from error
    return parse_json(sealed, f"{name}.json")


def _write_zarr(staged: Path, folder: str, content: PartContent) -> dict[str, FileHash]:
    """Write the part's Zarr group; return the hash of every file in it, all of them durable."""
    root = staged / folder
    part = zarr.create_group(LocalStore(root), zarr_format=3)
    hashes: dict[Path, FileHash] = {}
    with ExitStack() as stack:
        syncing = stack.enter_context(ThreadPoolExecutor(SYNC_THREADS))
        threads = stack.enter_context(ThreadPoolExecutor(part_threads()))
        stack.callback(threads.shutdown, cancel_futures=True)  # begins no more once one is seen to have failed
        synced: list[Future[None]] = []

        def sync(path: Path) -> None:
            synced.append(syncing.submit(sync_file, path))

        writing = []
        for array in content.arrays:
            layout = array.layout
            create_array(
                part,
                array.path,
                plan=layout.chunk_plan,
                dtype=array.dtype,
                dims=array.dims,
                attributes=array.attributes,
            )
            source = _Slabs(array)
            shards = write_shards(root / array.path, layout.chunk_plan, array.dtype, source, threads, sync=sync)
            writing.append((array.path, source, shards))
        _write_coordinates(part, content.coordinates)
        for path, source, shards in writing:
            hashes |= filter(None, [shard.result() for shard in shards])
            if source.rounds:
                part[path].update_attributes(source.rounding())
        consolidate(root)
        rest = [path for path in files_below(root) if path not in hashes]
        hashes |= zip(rest, syncing.map(_seal, rest), strict=True)
        for done in synced:
            done.result()
    return {path.relative_to(staged).as_posix(): hashes[path] for path in sorted(hashes)}


def _write_coordinates(part: zarr.Group, coordinates: tuple[Coordinate, ...]) -> None:
    """Write coordinates and name them in their group, else xarray takes them for data."""
    named: dict[str, list[str]] = {}
    for coordinate in coordinates:
        if coordinate.values.dtype != np.int32 or coordinate.values.ndim != 1:
            raise ValueError(f"coordinate {coordinate.path} must be int32 along one dimension")
        plan = coordinate.layout.chunk_plan
        array = create_array(
            part,
            coordinate.path,
            plan=plan,
            dtype="int32",
            dims=coordinate.dims,
            attributes=coordinate.attributes,
        )
        if plan.files:
            array[...] = coordinate.values
        group, name = coordinate.path.split("/")
        named.setdefault(group, []).append(name)
    for group, names in named.items():
        part[group].update_attributes({"coordinates": " ".join(names)})


class _Slabs:
    """A part array's slabs, checked, rounded where asked, with the rounding error measured on the way."""

    def __init__(self, array: PartArray) -> None:
        self._array = array
        self._errors: list[tuple[float, float]] = [(0.0, 0.0)]  # absolute, relative; appended to by several threads

    def __call__(self, index: int) -> Values:
        array = self._array
        slab = array.slab(index)
        dtype = array.slab_dtype or array.dtype
        if slab.shape != array.shape[1:] or slab.dtype != held_dtype(dtype):
            raise ValueError(
                f"{array.path}[{index}] is {slab.dtype}{slab.shape}, announced was {dtype}{array.shape[1:]}"
            )
        return _Rounded(slab, self._round) if self.rounds else slab

    @property
    def rounds(self) -> bool:
        """Whether stored values may differ from the captured ones."""
        array = self._array
        exact = array.slab_dtype in (None, array.dtype) or (array.slab_dtype, array.dtype) == ("bfloat16", "float32")
        return array.mantissa_bits is not None or not exact

    def _round(self, values: np.ndarray) -> np.ndarray:
        absolute = relative = 0.0
        for rounding in self._roundings(values):
            # What two roundings add up to is a bound of their joint error.
            absolute, relative = absolute + rounding.max_absolute_error, relative + rounding.max_relative_error
            values = rounding.values
        self._errors.append((absolute, relative))
        return values

    def _roundings(self, values: np.ndarray) -> Iterator[Rounding]:
        array = self._array
        if values.dtype == BFLOAT16_BITS:
            values = widen_bfloat16(values)
        if values.dtype != np.dtype(array.dtype):
            rounding = round_to_dtype(values, array.dtype, array.path)
            yield rounding
            values = rounding.values
        if array.mantissa_bits is not None:
            yield round_mantissa(values, array.mantissa_bits)

    def rounding(self) -> dict[str, Any]:
        """Attributes that say how far the stored values are from the captured ones; known once all are written."""
        absolute, relative = zip(*self._errors, strict=True)
        bits = {} if self._array.mantissa_bits is None else {"mantissa_bits": self._array.mantissa_bits}
        return {
            **bits,
            "rounding_max_absolute_error": max(absolute),
            "rounding_max_relative_error": max(relative),
        }


@dataclass(frozen=True)
class _Rounded:
    """A slab whose values are rounded when they are asked for."""

    slab: Slab
    round: Callable[[np.ndarray], np.ndarray]

    def __getitem__(self, selection: Selection) -> np.ndarray:
        return self.round(self.slab[selection])


def _seal(path: Path) -> FileHash:
    entry = hash_file(path)
    sync_file(path)
    return entry


def _manifest(content: PartContent, plan_sha256: str, root: Path, files: dict[str, FileHash]) -> dict[str, object]:
    layouts = [entry.layout for entry in content.coordinates] + [entry.layout for entry in content.arrays]
    tokens, keys, samples = (_lengths(layouts, axis) for axis in ("token", "key", "sample"))
    if len(tokens) != 1 or len(keys) > 1 or samples - {content.samples.num_rows}:
        raise ValueError(
            f"part {content.number}: arrays disagree on tokens ({tokens}), keys ({keys}) or samples ({samples})"
        )
    coordinates = {coordinate.path for coordinate in content.coordinates}
    part = zarr.open_group(LocalStore(root, read_only=True), mode="r", use_consolidated=False)
    return {
        "format_version": FORMAT_VERSION,
        "part": content.number,
        "plan_sha256": plan_sha256,
        "samples": content.samples.num_rows,
        "tokens": tokens.pop(),
        "keys": max(keys, default=0),
        "arrays": {
            layout.path: {
                "shape": list(layout.shape),
                "dtype": layout.dtype,
                "dims": list(layout.dims),
                "shard": list(layout.chunk_plan.shard or layout.chunk_plan.inner),
                "coordinate": layout.path in coordinates,
                **({} if layout.kept is None else {"kept": list(layout.kept)}),
                "attributes": dict(part[layout.path].attrs),
            }
            for layout in layouts
        },
        "files": files,
        "bad_samples": [{"sample_id": bad.sample_id, "reason": bad.reason} for bad in content.bad_samples],
        "run": dict(content.run),
        "seconds": content.seconds,
    }


def _lengths(layouts: list[ArrayShape], axis: str) -> set[int]:
    return {layout.shape[layout.dims.index(axis)] for layout in layouts if axis in layout.dims}
