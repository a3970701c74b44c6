"""What a writer is given: the arrays, coordinates and samples of one part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from engine.store.dtypes import BFLOAT16_BITS, widen_bfloat16
from engine.store.layout import TENSOR_ARRAYS, ArrayShape
from engine.vocabulary import ROLES, role_flags

__all__ = [
    "BadSample",
    "Coordinate",
    "PartArray",
    "PartContent",
    "Selection",
    "Slab",
    "Values",
    "block_coordinate",
    "in_dtypes",
    "layer_coordinate",
    "query_coordinate",
    "role_coordinate",
    "source_role_coordinate",
]


Selection = tuple[slice, ...] | EllipsisType
"""A slice for each axis up to the part's, all but that one whole; or everything."""


class Values(Protocol):
    """What is asked for its values run by run, as a NumPy array can be."""

    def __getitem__(self, selection: Selection, /) -> np.ndarray:
        """Return everything, or a run along the part's axis."""


class Slab(Values, Protocol):
    """One leading index of an array: a NumPy array, or what makes it when some of it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis but the leading one."""

    @property
    def dtype(self) -> np.dtype:
        """As held; of bfloat16 that of its bit patterns, uint16."""


@dataclass(frozen=True)
class PartArray:
    """One data array, handed over one leading index at a time.

    Attributes
    ----------
    path
        Group and name: ``token/hidden_states``.
    dims, shape
        Dimension names and lengths.
    dtype
        Stored dtype: ``float16``, ``float32`` or ``int32``.
    slab
        ``slab(i)`` is the array at leading index ``i``, called once for each, from several threads, which begin in
        order. Of what it returns, runs along the part's axis are asked for in order.
    attributes
        JSON values: units, long_name, captured_dtype, …; ``roles``, ``layers`` and ``blocks`` where only tokens of
        some roles, or some of the layers or blocks, are kept and all others are NaN (integers: -1).
    mantissa_bits
        When given, values are rounded to that many mantissa bits and the measured error joins the attributes.
    slab_dtype
        What ``slab`` returns where that is not ``dtype``. ``bfloat16`` means bit patterns (uint16), which are stored as
        the float32 of the same value; of others values are rounded to ``dtype``, and the measured error joins the
        attributes.
    kept
        How much of each dimension is kept, where that is less than ``shape``; None where everything is.
    """

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    slab: Callable[[int], Slab]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    mantissa_bits: int | None = None
    slab_dtype: str | None = None
    kept: tuple[int, ...] | None = None

    @property
    def layout(self) -> ArrayShape:
        """Path, dims, shape, dtype and how much is kept alone."""
        return ArrayShape(self.path, self.dims, self.shape, self.dtype, self.kept)

    def values(self, index: int) -> np.ndarray:
        """Return ``slab(index)`` as numbers: bit patterns of bfloat16 as float32."""
        slab = self.slab(index)[...]
        return widen_bfloat16(slab) if slab.dtype == BFLOAT16_BITS else slab


@dataclass(frozen=True)
class Coordinate:
    """One coordinate: int32 ``values`` along the single dimension of ``dims``, under ``path``."""

    path: str
    dims: tuple[str]
    values: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> ArrayShape:
        """Path, dims, shape and dtype alone."""
        return ArrayShape(self.path, self.dims, self.values.shape, "int32")


@dataclass(frozen=True)
class BadSample:
    """A planned sample that could not be stored, and why."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class PartContent:
    """Everything of one part.

    Attributes
    ----------
    number
        Part number of the plan.
    arrays, coordinates
        Data and coordinates; their axes may have length 0 when every sample is bad.
    samples
        Table of ``PART_SAMPLES_SCHEMA``, or of ``THUMBNAIL_SAMPLES_SCHEMA``.
    bad_samples
        Planned samples that are not in ``samples``.
    run
        JSON values: library versions, attention kernel, dtype, batch size, padding side, model revision.
    seconds
        How long the part took to extract.
    """

    number: int
    arrays: tuple[PartArray, ...]
    coordinates: tuple[Coordinate, ...]
    samples: pa.Table
    bad_samples: tuple[BadSample, ...]
    run: Mapping[str, Any]
    seconds: float


def in_dtypes(content: PartContent, dtypes: Mapping[str, str]) -> PartContent:
    """Have tensors stored in other dtypes than they come in.

    Parameters
    ----------
    content
        A part.
    dtypes
        ``float16`` or ``float32`` by tensor, out of ``TENSOR_ARRAYS``.
    """
    chosen = {path: dtypes[tensor] for tensor in dtypes for path in TENSOR_ARRAYS[tensor]}
    arrays = tuple(
        replace(
            array,
            dtype=chosen[array.path],
            slab_dtype=array.slab_dtype or array.dtype,
            attributes={"captured_dtype": array.dtype, **array.attributes},
        )
        if array.path in chosen
        else array
        for array in content.arrays
    )
    return replace(content, arrays=arrays)


def layer_coordinate(group: str, layers: Sequence[int]) -> Coordinate:
    """Make the ``layer`` coordinate of a group (``token`` or ``sample``) from the stored layer numbers."""
    attributes = {"long_name": "point of the residual stream; 0 enters block 1, l leaves block l"}
    return Coordinate(f"{group}/layer", ("layer",), np.asarray(layers, np.int32), attributes)


def role_coordinate(group: str = "sample") -> Coordinate:
    """Make the ``role`` coordinate of pooled arrays: every role's code, in order."""
    return Coordinate(f"{group}/role", ("role",), np.arange(len(ROLES), dtype=np.int32), role_flags())


def source_role_coordinate() -> Coordinate:
    """Make the coordinate of what attention goes to, per role: every role's code, in order."""
    attributes = {"long_name": "role of the positions that attention goes to", **role_flags()}
    return Coordinate("token/source_role", ("source_role",), np.arange(len(ROLES), dtype=np.int32), attributes)


def block_coordinate(group: str, blocks: Sequence[int]) -> Coordinate:
    """Make the ``block`` coordinate of a group (``token`` or ``key``) from the stored block numbers, within 1..L."""
    attributes = {"long_name": "Transformer block; 1 is the first"}
    return Coordinate(f"{group}/block", ("block",), np.asarray(blocks, np.int32), attributes)


def query_coordinate(names: Sequence[str]) -> Coordinate:
    """Make the ``query`` coordinate of attention rows from the queries' names: codes 0..n-1 with the names as flags."""
    codes = np.arange(len(names), dtype=np.int32)
    attributes = {
        "long_name": "position whose attention is kept",
        "flag_values": codes.tolist(),
        "flag_meanings": " ".join(names),
    }
    return Coordinate("key/query", ("query",), codes, attributes)
