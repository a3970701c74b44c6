"""What a manifest may say, beyond being JSON with a true checksum: whoever made it may have sealed anything."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from engine.store.layout import BlockTensors, part_arrays
from engine.store.limits import MAX_EXPANSION, STORED_DTYPES, is_finite, is_shape
from engine.store.versions import is_version

__all__ = ["are_file_hashes", "check_manifest", "is_count", "is_inside"]

_NEEDED = (
    "format_version",
    "part",
    "plan_sha256",
    "samples",
    "tokens",
    "arrays",
    "files",
    "bad_samples",
    "run",
    "seconds",
    "sha256",
)
_COUNTS = ("part", "samples", "tokens", "keys")
_AXES = ("token", "key", "sample")
_CHOICES = {"roles": str, "layers": int, "blocks": int}
_CAPTURED = ("float16", "float32", "bfloat16")
_ERRORS = ("rounding_max_absolute_error", "rounding_max_relative_error")
_KNOWN = {
    array.path: array
    for array in part_arrays(
        tokens=1,
        samples=1,
        layers=1,
        dim=1,
        roles=1,
        dtype="float32",
        residual=True,
        pooled=True,
        lens_ranks=1,
        blocks=BlockTensors(
            blocks=1,
            heads=1,
            attention=True,
            queries=1,
            keys=1,
            mass=True,
            attention_output=True,
            mlp_output=True,
        ),
    )
}
"""Every array of this format, of lengths 1; others are ignored."""

_NAME_BYTES, _PATH_BYTES = 255, 1024  # more than any file of a store has, less than any file system refuses


def check_manifest(manifest: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a manifest, as the rest of a sentence; None where nothing is.

    Notes
    -----
    Arrays must have dtypes of this format, lengths that agree with the part's counts, and no more values than their
    files' bytes can hold.
    """
    try:
        _check_counts(manifest)
        _check_arrays(manifest)
    except _WrongError as error:
        return str(error)
    return None


class _WrongError(Exception):
    """What is wrong with a manifest."""


def _check_counts(manifest: Mapping[str, Any]) -> None:
    """Check all fields but the arrays."""
    missing = [name for name in _NEEDED if name not in manifest]
    if missing:
        raise _WrongError(f"lacks {', '.join(missing)}")
    if not is_version(manifest["format_version"]):
        raise _WrongError("has a format_version that is none")
    if not all(is_count(manifest.get(name, 0)) for name in _COUNTS):
        raise _WrongError("has counts that are none")
    if not is_finite(manifest["seconds"]):
        raise _WrongError("has a time that is none")
    if not isinstance(manifest["run"], dict):
        raise _WrongError("has a run that is no object")
    if not _are_bad_samples(manifest["bad_samples"]):
        raise _WrongError("has bad samples without id or reason")
    if not are_file_hashes(manifest["files"]):
        raise _WrongError("has no list of files")
    own = {f"{manifest['part']:08d}{suffix}" for suffix in (".zarr", ".parquet")}
    for name in manifest["files"]:
        if not is_inside(name) or name.split("/")[0] not in own:
            raise _WrongError(f"lists {name[:100]!r}, which is outside of its part")


def _check_arrays(manifest: Mapping[str, Any]) -> None:
    if not isinstance(manifest["arrays"], dict):
        raise _WrongError("has no list of arrays")
    stored = _stored_bytes(manifest["files"])
    counts = {axis: manifest.get(f"{axis}s", 0) for axis in _AXES}
    for path, entry in manifest["arrays"].items():
        try:
            _check_entry(path, entry, counts, stored.get(path, 0))
        except _WrongError as error:
            raise _WrongError(f"says of {path[:100]!r} what cannot be: {error}") from None


def is_count(value: object) -> bool:
    """Whether a JSON value is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def are_file_hashes(value: object) -> bool:
    """Whether a value has the shape {path: {sha256: text, bytes: number}}."""
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and is_count(entry.get("bytes"))
        for entry in value.values()
    )


def is_inside(name: str) -> bool:
    """Whether a path stays below the folder that it is relative to, whatever lies there, and can be a file's at all."""
    if not name.isprintable():
        return False
    encoded = name.encode()
    parts = encoded.split(b"/")
    # An absolute path's first part is empty.
    return len(encoded) <= _PATH_BYTES and max(map(len, parts)) <= _NAME_BYTES and not {b"", b".", b".."} & set(parts)


def _are_bad_samples(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(sample, dict) and isinstance(sample.get("sample_id"), str) and isinstance(sample.get("reason"), str)
        for sample in value
    )


def _stored_bytes(files: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of the data files of each array, by its path."""
    found: dict[str, int] = defaultdict(int)
    for name, entry in files.items():
        path, chunk, _ = name.partition("/c/")
        if chunk:
            found[path.partition("/")[2]] += entry["bytes"]
    return found


def _are_choices(attributes: Mapping[str, Any]) -> bool:
    """Whether what says of which roles, layers and blocks values are kept has that form, where it is there."""
    chosen = ((attributes[name], kind) for name, kind in _CHOICES.items() if name in attributes)
    return all(isinstance(values, list) and all(isinstance(one, kind) for one in values) for values, kind in chosen)


def _check_rounding(attributes: Mapping[str, Any]) -> None:
    """Check what says how values were held and rounded, where it is there."""
    if attributes.get("captured_dtype", "float32") not in _CAPTURED:
        raise _WrongError(f"the captured_dtype {attributes['captured_dtype']!r:.40}, not {' or '.join(_CAPTURED)}")
    bits = attributes.get("mantissa_bits", 1)
    if not is_count(bits) or bits < 1:
        raise _WrongError(f"the mantissa_bits {bits!r:.40}, not a number from 1 on")
    for name in _ERRORS:
        error = attributes.get(name, 0)
        if not is_finite(error) or error < 0:
            raise _WrongError(f"the {name} {error!r:.40}, not a finite number from 0 on")


def _is_integer(dtype: str) -> bool:
    return dtype.startswith("int")


def _check_entry(path: str, entry: object, counts: Mapping[str, int], stored: int) -> None:
    if not isinstance(entry, dict) or path.count("/") != 1 or not is_inside(path):
        raise _WrongError("no array of a group")
    attributes = entry.get("attributes")
    if not isinstance(attributes, dict) or not isinstance(entry.get("coordinate"), bool):
        raise _WrongError("no attributes")
    if entry.get("dtype") not in [*STORED_DTYPES]:
        raise _WrongError(f"the dtype {str(entry.get('dtype'))[:40]!r}")
    _check_rounding(attributes)
    if not _are_choices(attributes):
        raise _WrongError("roles, layers or blocks that are no lists of such")
    dims, shape, shard = entry.get("dims"), entry.get("shape"), entry.get("shard")
    kept = entry.get("kept", shape)
    if not isinstance(dims, list) or not all(isinstance(dim, str) for dim in dims):
        raise _WrongError("no dimensions")
    known = _KNOWN.get(path)
    if known is not None and (tuple(dims) != known.dims or _is_integer(entry["dtype"]) != _is_integer(known.dtype)):
        raise _WrongError(f"{entry['dtype']} along {', '.join(dims)[:100]!r}, where it has {', '.join(known.dims)}")
    if not (is_shape(shape) and is_shape(shard) and is_shape(kept)) or {len(shape), len(shard), len(kept)} != {
        len(dims)
    }:
        raise _WrongError("no lengths along its dimensions")
    if 0 in shard or any(own > length for own, length in zip(kept, shape, strict=True)):
        raise _WrongError("lengths that do not fit each other")
    for dim, length in zip(dims, shape, strict=True):
        if counts.get(dim, length) != length:
            raise _WrongError(f"{length:,} along {dim}, where the part has {counts[dim]:,}")
    claimed = math.prod(shape) * STORED_DTYPES[entry["dtype"]]
    if claimed > MAX_EXPANSION * stored:
        raise _WrongError(f"{claimed:,} bytes of values in {stored:,} bytes of files")
