"""One sample's stored tensors against fresh passes: vectors by their deviations, integers exactly but ids by logits.

Which axis makes a vector is decided by the names of dimensions, so a further tensor of the format needs nothing here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.audit.compare import Deviations, compare_vectors
from engine.audit.lens import LENS_ID, FreshPieces, compare_ids
from engine.audit.stored import StoredSample
from engine.store import KEY_COORDINATES, PartArray, PartContent

__all__ = ["ComparedSample", "compare_sample", "name_place", "relative_rounding", "rounding_allowance"]

_VECTOR_DIMS = ("dim", "source_role", "key", "head", "rank")
"""The first of these that a tensor has runs along its vectors: states by token, attention rows by query and head."""

_TABLE_COLUMNS = ("image_sha256", "width", "height", "prompt_id", "prompt_kind", "prompt", "query_positions")
_SINCE = {f"key/{name}": (0, 4) for name in KEY_COORDINATES}
"""Format versions that first had a coordinate, where stores without it can be audited."""

_COUNTED_ALONG = {"token": "tokens", "key": "positions"}


class ComparedSample(NamedTuple):
    """What comparing one sample found.

    Attributes
    ----------
    deviations
        By path of the tensor; (leading index, other vector dimensions …).
    dims
        By path, the names of the deviations' dimensions and, last, that of the vectors themselves.
    mismatches
        What had to be equal and is not, one sentence each.
    same_tokens
        Whether the stored tokens are those of the fresh pass.
    coordinates
        By path, of the fresh pass: they name places.
    """

    deviations: dict[str, Deviations]
    dims: dict[str, tuple[str, ...]]
    mismatches: tuple[str, ...]
    same_tokens: bool
    coordinates: dict[str, tuple[np.ndarray, Mapping[str, Any]]]


def compare_sample(
    stored: StoredSample, fresh: PartContent, others: Sequence[PartContent], pieces: Sequence[FreshPieces] = ()
) -> ComparedSample:
    """Compare everything that is stored of a sample.

    Parameters
    ----------
    stored
        The sample in its part.
    fresh
        A part of this sample alone from a fresh pass; used up.
    others
        The same from passes that differ from it by noise alone; used up.
    pieces
        Vocabulary pieces of all these passes, in this order, where there are such: of more ranks than are stored.
    """
    mismatches = list(_table_mismatches(stored, fresh))
    unequal = set()
    for coordinate in fresh.coordinates:
        if coordinate.path not in stored.arrays:
            if stored.format_version >= _SINCE.get(coordinate.path, (0, 0)):
                mismatches.append(f"{coordinate.path} is not stored")
            continue
        group = coordinate.path.split("/")[0]
        values = stored.coordinate(coordinate.path)
        if coordinate.path == "key/token":
            values = _own_places(values, stored.places)
        if len(values) != len(coordinate.values):
            unequal.add(group)
            what = _COUNTED_ALONG.get(group, "entries") if coordinate.dims == (group,) else "entries"
            counts = f"{len(values)} {what} stored, {len(coordinate.values)} in a fresh pass"
            mismatches.append(f"{coordinate.path}: {counts}")
        elif (values != coordinate.values).any():
            place = int(np.flatnonzero(values != coordinate.values)[0])
            found = f"stored {values[place]}, fresh {coordinate.values[place]}"
            mismatches.append(f"{coordinate.path} at {place}: {found}")
    deviations, dims = {}, {}
    for one in fresh.arrays:
        mismatches += _kept_mismatches(stored, one)
    for one, *again in zip(fresh.arrays, *(other.arrays for other in others), strict=True):
        wrong = _wrong_shape(stored, one, unequal)
        if wrong:
            mismatches += [f"{one.path}: {wrong}"] if wrong not in unequal else []
        elif one.path == LENS_ID:
            dims[one.path] = _dims(one)
            deviations[one.path] = compare_ids(stored, pieces[0], pieces[1:])
        elif np.issubdtype(np.dtype(one.dtype), np.integer):
            mismatches += _integer_mismatches(stored, one)
        else:
            dims[one.path] = _dims(one)
            deviations[one.path] = _deviations(stored, one, again)
    coordinates = {entry.path: (entry.values, entry.attributes) for entry in fresh.coordinates}
    same_tokens = not any(text.startswith("token/token_id") for text in mismatches)
    return ComparedSample(deviations, dims, tuple(mismatches), same_tokens, coordinates)


def _table_mismatches(stored: StoredSample, fresh: PartContent) -> Iterator[str]:
    (row,) = fresh.samples.to_pylist()
    for column in _TABLE_COLUMNS:
        said = stored.values.get(column)
        said = said.tolist() if isinstance(said, np.ndarray) else said
        if said != row[column]:
            yield f"{column}: the sample table says {said!r}, a fresh pass {row[column]!r}"


def _kept_mismatches(stored: StoredSample, fresh: PartArray) -> Iterator[str]:
    """Compare what an array says that it keeps: the values follow it, NaN or -1 where it keeps none."""
    said = stored.arrays.get(fresh.path, {}).get("attributes", fresh.attributes)
    for name in ("roles", "layers", "blocks"):
        one, two = said.get(name, "all"), fresh.attributes.get(name, "all")
        if one != two:
            yield f"{fresh.path}: its attributes say that it keeps {name} {one}, store.json says {two}"


def _own_places(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Turn places on the part's token axis into places among the sample's own tokens; −1 stays, −2 is a foreign one."""
    if not len(places):
        return np.where(values < 0, values, -2)
    order = np.argsort(places)
    found = order[np.searchsorted(places, values, sorter=order).clip(max=len(places) - 1)]
    return np.where(values < 0, values, np.where(places[found] == values, found, -2))


def _wrong_shape(stored: StoredSample, array: PartArray, unequal: set[str]) -> str:
    """Say why an array cannot be compared, or nothing; a group's name where its lengths are known to differ."""
    if array.path not in stored.arrays:
        return "is not stored"
    group = array.path.split("/")[0]
    entry = stored.arrays[array.path]
    shape = [length for dim, length in zip(entry["dims"], entry["shape"], strict=True) if dim != group]
    expected = [length for dim, length in zip(array.dims, array.shape, strict=True) if dim != group]
    if list(entry["dims"]) != list(array.dims) or shape != expected:
        return f"stored as {dict(zip(entry['dims'], entry['shape'], strict=True))}, which is another shape"
    return group if group in unequal and group in array.dims else ""


def _integer_mismatches(stored: StoredSample, array: PartArray) -> Iterator[str]:
    for index in range(array.shape[0]):
        one, two = stored.slab(array.path, index), array.slab(index)[...]
        if not np.array_equal(one, two):
            yield f"{array.path} at {index}: stored {one.tolist()}, fresh {two.tolist()}"


def _dims(array: PartArray) -> tuple[str, ...]:
    vector = next(dim for dim in _VECTOR_DIMS if dim in array.dims)
    return (*(dim for dim in array.dims if dim != vector), vector)


def _deviations(stored: StoredSample, fresh: PartArray, others: Sequence[PartArray]) -> Deviations:
    axis = fresh.dims.index(_dims(fresh)[-1]) - 1
    entry = stored.arrays[fresh.path]
    slabs = []
    for index in range(fresh.shape[0]):
        one = fresh.values(index)
        # Of a batch of copies the first one counts.
        copies = (other.values(index)[tuple(map(slice, one.shape))] for other in others)
        values = (stored.slab(fresh.path, index), one, *copies)
        held, anew, *again = (np.moveaxis(np.asarray(slab, dtype=np.float64), axis, -1) for slab in values)
        slabs.append(compare_vectors(held, anew, again, rounding_allowance(entry, np.abs(anew))))
    return Deviations(*(np.stack(part) for part in zip(*slabs, strict=True)))


def rounding_allowance(entry: Mapping[str, Any], magnitude: np.ndarray) -> np.ndarray | float:
    """How far values may be off because they were rounded for storing, from the errors measured at writing.

    Below the smallest normal number of the dtype the spacing is constant, so the error is what it is at that number.

    Parameters
    ----------
    entry
        The manifest's entry of the stored array.
    magnitude
        Of the values, any shape.
    """
    relative = relative_rounding(entry)
    if not relative:
        return 0.0
    normal = np.maximum(magnitude, np.finfo(entry["dtype"]).tiny)
    return np.minimum(relative * normal, float(entry["attributes"]["rounding_max_absolute_error"]))


def relative_rounding(entry: Mapping[str, Any]) -> float:
    """Largest relative error of normal numbers that were rounded for storing: measured, at most that of the arithmetic.

    What is measured may be 1: a single value below the smallest number of float16 becomes 0, and would excuse others.

    Parameters
    ----------
    entry
        The manifest's entry of the stored array.
    """
    attributes = entry["attributes"]
    steps = [np.finfo(entry["dtype"]).nmant, *([attributes["mantissa_bits"]] if "mantissa_bits" in attributes else [])]
    possible = float(np.prod([1 + 2.0 ** -(bits + 1) for bits in steps])) - 1
    return min(float(attributes.get("rounding_max_relative_error", 0.0)), possible)


def name_place(path: str, dims: tuple[str, ...], index: tuple[int, ...], compared: ComparedSample) -> str:
    """Put a place into words: ``layer 12, position 37 (image), dim 5``."""
    group = path.split("/", maxsplit=1)[0]
    return ", ".join(
        _name(group, dim, place, compared) for dim, place in zip(dims, index, strict=True) if dim != "sample"
    )


def _name(group: str, dim: str, place: int, compared: ComparedSample) -> str:
    if dim == "token":
        position, role = (_value(compared, f"token/{name}", place) for name in ("position", "role"))
        return f"position {position} ({role})"
    if dim == "key":
        return f"key position {place}"
    return f"{dim.replace('_', ' ')} {_value(compared, f'{group}/{dim}', place)}"


def _value(compared: ComparedSample, path: str, place: int) -> object:
    """Return a coordinate's value at a place, by its meaning where it is a code; the place itself without one."""
    if path not in compared.coordinates:
        return place
    values, attributes = compared.coordinates[path]
    code = int(values[place])
    if "flag_meanings" not in attributes:
        return code
    return str(attributes["flag_meanings"]).split()[list(attributes["flag_values"]).index(code)]
